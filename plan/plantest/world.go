// Package plantest makes random intent for tests: a cluster of every kind that a
// planner takes in, which changes step by step. Names and addresses are few, so
// that objects meet: they share addresses, claim each other's front ends, come
// back under another meaning, and some make no sense.
//
// It is for tests only; nothing that runs in production imports it.
package plantest

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/plan"
)

// Self is the node whose plan is made.
const Self = "master"

// Event is one thing that a planner is told, about one subject.
type Event struct {
	subject string
	gone    bool
	tell    func(*plan.Planner)
}

// Tell tells a planner.
func (e Event) Tell(pl *plan.Planner) { e.tell(pl) }

// String names the event for a failed test.
func (e Event) String() string {
	if e.gone {
		return e.subject + " goes"
	}
	return e.subject
}

// World is the intent as it is now.
type World struct {
	*rand.Rand
	// HostInterfaces are the devices that local pods may have.
	HostInterfaces []string

	now     map[string]Event // by subject; what is gone is not in it
	settled Settings
}

// Settings limit what a world may hold.
type Settings struct {
	// Fabric is false where nodes, pools, blocks and the fabric's configuration
	// stay as they are.
	Fabric bool
	// Underlay is false where the node's own connection stays as it is.
	Underlay bool
	// Sense leaves out objects that contradict others or can't be understood: a
	// kernel refuses some of what a plan can say of them.
	Sense bool
}

// Everything is a world without limits.
var Everything = Settings{Fabric: true, Underlay: true}

// Underlay is the node's connection with which a world begins.
var Underlay = fabric.Underlay{Link: "eth0", MTU: 1500, Prefixes: []netip.Prefix{
	netip.MustParsePrefix("172.16.10.10/24"), netip.MustParsePrefix("fd00:172:16:10::10/64"),
}}

// New is an empty world. The same seed makes the same.
func New(seed uint64, s Settings) *World {
	w := &World{Rand: rand.New(rand.NewPCG(seed, 0)), now: map[string]Event{}, settled: s}
	for _, letter := range "abcdef" {
		w.HostInterfaces = append(w.HostInterfaces, plan.VethPrefix+string(letter))
	}
	return w
}

// Planner is a planner that knows nothing but where it is.
func Planner() *plan.Planner {
	pl := plan.NewPlanner(Self)
	pl.SetUnderlay(Underlay)
	return pl
}

// Change changes one thing in the world and returns it, to be told.
func (w *World) Change() Event {
	e := w.random()
	if w.chance(25) {
		return w.forget(e.subject)
	}
	w.now[e.subject] = e
	return e
}

// Events are what has to be told so that the world is known, in random order and
// some of it twice.
func (w *World) Events() []Event {
	var out []Event
	for _, subject := range slices.Sorted(maps.Keys(w.now)) {
		e := w.now[subject]
		out = append(out, e)
		if w.chance(20) {
			out = append(out, e)
		}
	}
	w.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// Detours are Events with things in between that come and go again, or come in
// another form first.
func (w *World) Detours() []Event {
	var out []Event
	for _, e := range w.Events() {
		switch w.IntN(6) {
		case 0:
			out = append(out, e, w.undo(e.subject), e)
		case 1:
			other := w.random()
			out = append(out, other)
			if current, ok := w.now[other.subject]; ok {
				out = append(out, current)
			} else {
				out = append(out, w.undo(other.subject))
			}
			out = append(out, e)
		default:
			out = append(out, e)
		}
	}
	return out
}

// Undo tells that everything is gone, in random order.
func (w *World) Undo() []Event {
	var out []Event
	for _, subject := range slices.Sorted(maps.Keys(w.now)) {
		out = append(out, w.undo(subject))
	}
	w.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func (w *World) forget(subject string) Event {
	delete(w.now, subject)
	return w.undo(subject)
}

// undo is the end of a subject; of settings, that they are as at first.
func (w *World) undo(subject string) Event {
	e := Event{subject: subject, gone: true}
	kindName, rest, _ := strings.Cut(subject, " ")
	switch kindName {
	case subjectLocal:
		e.tell = func(pl *plan.Planner) { pl.DeleteLocal(rest) }
	case subjectUnderlay:
		e.tell = func(pl *plan.Planner) { pl.SetUnderlay(Underlay) }
	case subjectReserved:
		e.tell = func(pl *plan.Planner) { pl.SetReserved(nil) }
	case subjectExternalIPs:
		e.tell = func(pl *plan.Planner) { pl.SetExternalIPRanges(nil) }
	default:
		kind := api.LookupKind(kindName)
		var key api.Key
		if namespace, name, ok := strings.Cut(rest, "/"); ok {
			key = api.Key{Namespace: namespace, Name: name}
		} else {
			key.Name = rest
		}
		e.tell = func(pl *plan.Planner) { pl.Delete(kind, key) }
	}
	return e
}

// The subjects of events that are not about an object.
const (
	subjectLocal       = "local"
	subjectUnderlay    = "underlay"
	subjectReserved    = "reserved"
	subjectExternalIPs = "external-ips"
)

func put(obj api.Object) Event {
	return Event{
		subject: api.KindOf(obj).Name + " " + api.KeyOf(obj).String(),
		tell:    func(pl *plan.Planner) { pl.Put(obj) },
	}
}

// random is a random thing that may be told.
func (w *World) random() Event {
	makers := []func() Event{
		w.local, w.local, w.local, w.endpoint, w.endpoint, w.endpoint, w.service, w.service, w.service,
		w.endpointSlice, w.endpointSlice, w.networkPolicy, w.networkPolicy, w.networkPolicy, w.namespace, w.externalIPs,
	}
	if w.settled.Fabric {
		makers = append(makers, w.node, w.node, w.block, w.block, w.pool, w.fabricConfiguration)
	}
	if w.settled.Underlay && w.chance(10) {
		return w.underlay()
	}
	if w.settled.Underlay && w.odd(5) {
		return w.reserved()
	}
	return makers[w.IntN(len(makers))]()
}

func (w *World) chance(percent int) bool { return w.IntN(100) < percent }

// odd is chance for what makes no sense.
func (w *World) odd(percent int) bool { return !w.settled.Sense && w.chance(percent) }

func pick[T any](w *World, from ...T) T { return from[w.IntN(len(from))] }

// some picks at most n, each at most once.
func some[T any](w *World, n int, from ...T) []T {
	from = slices.Clone(from)
	w.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
	return from[:w.IntN(min(n, len(from))+1)]
}
