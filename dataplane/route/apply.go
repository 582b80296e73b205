package route

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/plan"
)

// reported is how many failed keys an error of Apply names.
const reported = 20

// settleEvery is the number of writes after which the notifications of these
// writes are taken, so that they can't fill the socket's buffer.
const settleEvery = 4096

// Apply makes the dirty keys of p's Sysctls, Links, Addresses, Neighbours, FDB
// and Routes true, and returns how many changes it wrote. The first call, and
// the first after Resync, compares the whole plan with the kernel and removes
// what is ours and not wanted.
//
// A key that fails does not keep others from being written; it stays dirty. The
// error joins what failed and why; *MissingLinkError tells of devices that are
// not there.
func (k *Kernel) Apply(p *plan.Plan) (writes int, err error) {
	k.mu.Lock()
	k.settle()
	if k.unread {
		if err := k.read(p); err != nil {
			k.mu.Unlock()
			return 0, err
		}
	}
	k.retry = false
	clear(k.waiting)
	k.takeAllChanged(p)
	a := &pass{Kernel: k, plan: p, missing: map[string]map[string]int{}}
	a.run()
	k.settle()
	drift := k.drift
	if !k.drifted() {
		drift = nil
	}
	host := k.host
	if !k.takeHostChanged() {
		host = nil
	}
	k.mu.Unlock()
	if drift != nil {
		drift()
	}
	if host != nil {
		host()
	}
	return a.writes, a.err()
}

// pass is one run of Apply.
type pass struct {
	*Kernel
	plan    *plan.Plan
	writes  int
	failed  []error
	missing map[string]map[string]int // link → what waits for it → how many
	// held is what holds the wanted prefixes in the kernel, read when a route
	// is refused because it exists.
	held map[netip.Prefix]routeMessage
}

func (a *pass) run() {
	sysctls := step[string, string]{what: "sysctl", table: a.plan.Sysctls, belief: a.sysctls, put: a.putSysctl}
	addresses := step[plan.AddressKey, struct{}]{what: "address", table: a.plan.Addresses, belief: a.addresses, put: a.putAddress, drop: a.dropAddress}
	neighbours := step[plan.NeighbourKey, plan.MAC]{what: "neighbour", table: a.plan.Neighbours, belief: a.neighbours, put: a.putNeighbour, drop: a.dropNeighbour}
	fdb := step[plan.FDBKey, netip.Addr]{what: "forwarding entry", table: a.plan.FDB, belief: a.fdb, put: a.putFDB, drop: a.dropFDB}
	routes := step[netip.Prefix, plan.Route]{what: "route", table: a.plan.Routes, belief: a.routes, put: a.putRoute, drop: a.dropRoute}

	sysctls.where = func(path string) bool { return sysctlLink(path) == "" }
	sysctls.add(a)
	raise := a.addLinks()
	sysctls.where = func(path string) bool { return sysctlLink(path) != "" }
	sysctls.add(a)
	// Only now, so that no packet passes a device whose settings are the
	// kernel's defaults.
	a.raiseLinks(raise)
	addresses.add(a)
	neighbours.add(a)
	fdb.add(a)
	routes.add(a)

	routes.remove(a)
	fdb.remove(a)
	neighbours.remove(a)
	addresses.remove(a)
	a.removeLinks()
	// Nobody knows what a sysctl was before, and others may count on it by now:
	// those that are no longer wanted are only forgotten.
	sysctls.remove(a)
}

// step writes one table of the plan.
type step[K, V comparable] struct {
	what   string
	table  *plan.Table[K, V]
	belief *belief[K, V]
	where  func(K) bool // limits the step; nil: all keys
	// put writes one entry. It returns false if the kernel had it already.
	put func(K, V) (wrote bool, err error)
	// drop removes one entry; that it is not there is no error. nil: what is no
	// longer wanted stays as it is.
	drop func(K, V) error
}

// add writes the dirty entries that are wanted.
func (s step[K, V]) add(a *pass) {
	takeChanged(s.table, s.belief, false)
	for key := range s.table.Dirty() {
		want, ok := s.table.Get(key)
		if !ok || s.where != nil && !s.where(key) {
			continue
		}
		if have, ok := s.belief.have[key]; ok && have == want {
			s.table.MarkClean(key)
			delete(s.belief.suspect, key)
			continue
		}
		wrote, err := s.put(key, want)
		if err != nil {
			a.fail(s.what, err)
			continue
		}
		s.belief.set(key, want)
		s.table.MarkClean(key)
		if wrote {
			a.wrote()
			a.mends(s.belief.suspected(key))
		}
		delete(s.belief.suspect, key)
	}
}

// remove deletes the dirty entries that are not wanted.
func (s step[K, V]) remove(a *pass) {
	for key := range s.table.Dirty() {
		if _, ok := s.table.Get(key); ok {
			continue
		}
		if have, ok := s.belief.have[key]; ok && s.drop != nil {
			if err := s.drop(key, have); err != nil {
				a.fail(s.what, err)
				continue
			}
			a.wrote()
			a.mends(s.belief.suspected(key))
		}
		delete(s.belief.suspect, key)
		s.belief.unset(key)
		s.table.MarkClean(key)
	}
}

// takeAllChanged takes what changed before this Apply writes anything. What
// changes later is taken for a consequence of its writes: with its device, the
// kernel removes what is on it.
func (k *Kernel) takeAllChanged(p *plan.Plan) {
	takeChanged(p.Sysctls, k.sysctls, true)
	takeChanged(p.Links, k.links, true)
	takeChanged(p.Addresses, k.addresses, true)
	takeChanged(p.Neighbours, k.neighbours, true)
	takeChanged(p.FDB, k.fdb, true)
	takeChanged(p.Routes, k.routes, true)
}

// takeChanged marks dirty what changed in the kernel.
func takeChanged[K, V, B comparable](t *plan.Table[K, V], b *belief[K, B], suspicious bool) {
	for key := range b.changed {
		b.doubt(key, t, suspicious)
	}
	clear(b.changed)
}

// dirtyTable is the part of a plan.Table that belief.doubt needs.
type dirtyTable[K comparable] interface {
	IsDirty(K) bool
	MarkDirty(K)
}

// doubt marks a key dirty of which the kernel may have something else.
func (b *belief[K, V]) doubt(key K, t dirtyTable[K], suspicious bool) {
	if suspicious && !t.IsDirty(key) {
		b.suspect[key] = struct{}{}
	}
	t.MarkDirty(key)
}

func (b *belief[K, V]) suspected(key K) bool {
	_, ok := b.suspect[key]
	return ok
}

func (a *pass) mends(suspected bool) {
	if suspected {
		a.mended++
	}
}

func (a *pass) wrote() {
	a.writes++
	if a.writes%settleEvery == 0 {
		a.settle()
	}
}

// MissingLinkError says that a device which the plan takes for granted does not
// exist: the host end of a pod's pair, or a device of the host.
type MissingLinkError struct {
	Link    string
	Veth    bool   // a pod's: it has to be attached again
	Waiting string // what can't be written meanwhile, in words; may be empty
}

func (e *MissingLinkError) Error() string {
	s := "link " + e.Link + " is missing"
	if e.Veth {
		s = "veth missing: " + e.Link + "; attach its pod again"
	}
	if e.Waiting != "" {
		s += " (" + e.Waiting + ")"
	}
	return s
}

func (a *pass) fail(what string, err error) {
	var missing *MissingLinkError
	if !errors.As(err, &missing) {
		a.failed = append(a.failed, err)
		return
	}
	a.waiting[missing.Link] = struct{}{}
	if a.missing[missing.Link] == nil {
		a.missing[missing.Link] = map[string]int{}
	}
	a.missing[missing.Link][what]++
}

// err joins what failed, in a stable order.
func (a *pass) err() error {
	slices.SortFunc(a.failed, func(x, y error) int { return strings.Compare(x.Error(), y.Error()) })
	errs := a.failed
	if len(errs) > reported {
		errs = append(errs[:reported:reported], fmt.Errorf("and %d more failed in such ways", len(a.failed)-reported))
	}
	var missing []*MissingLinkError
	for link, counts := range a.missing {
		want, ok := a.plan.Links.Get(link)
		e := &MissingLinkError{Link: link, Veth: ok && want.Kind == plan.LinkVeth}
		var parts []string
		for _, what := range []string{"link", "sysctl", "address", "neighbour", "forwarding entry", "route"} {
			if n := counts[what]; n > 0 && !(what == "link" && e.Veth) {
				parts = append(parts, fmt.Sprintf("%s: %d", what, n))
			}
		}
		if len(parts) > 0 {
			e.Waiting = "waiting for it: " + strings.Join(parts, ", ")
		}
		missing = append(missing, e)
	}
	slices.SortFunc(missing, func(x, y *MissingLinkError) int { return strings.Compare(x.Link, y.Link) })
	for _, e := range missing {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// index finds the device that an entry needs; without one it is a
// *MissingLinkError.
func (a *pass) index(link string) (int, error) {
	if i, ok := a.indexes[link]; ok {
		return i, nil
	}
	return 0, &MissingLinkError{Link: link}
}
