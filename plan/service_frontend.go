package plan

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go4.org/netipx"

	"github.com/twill-net/twill/service"
)

// frontendKey is what two owners can't both have.
type frontendKey struct {
	addr     netip.Addr
	protocol uint8
	port     uint16
}

func (k frontendKey) String() string {
	return netip.AddrPortFrom(k.addr, k.port).String() + "/" + protoName(k.protocol)
}

// placement is a front end that is in the tables: whose it is, and what has to
// be taken back when it goes.
type placement struct {
	claim
	backends, local list
	clusterIP       bool
	ranges          []netipx.IPRange
}

// list is how many backends a list has in the tables, and how they are chosen.
type list struct {
	n        int
	affinity affinity
}

// claim orders those who want one front end: addresses of the cluster's own
// come before those that users choose, then the older object keeps it.
type claim struct {
	owner   owner
	class   service.Class
	created time.Time
}

func (a claim) before(b claim) bool {
	return cmp.Or(
		cmp.Compare(a.class, b.class),
		a.created.Compare(b.created),
		cmp.Compare(a.owner.key.Namespace, b.owner.key.Namespace),
		cmp.Compare(a.owner.key.Name, b.owner.key.Name),
	) < 0
}

// replan makes the tables hold exactly what the owner asks for and has the best
// claim to.
func (s *servicePlanner) replan(o owner) {
	frontends, faults := s.wanted(o)
	wanted := make(map[frontendKey]*service.Frontend, len(frontends))
	for i := range frontends {
		f := &frontends[i]
		k := frontendKey{f.Addr, f.Protocol, f.Port}
		if other, ok := wanted[k]; !ok || f.Class < other.Class {
			wanted[k] = f
		}
	}
	for _, k := range s.lost[o] {
		delete(s.rivals[k], o)
		if len(s.rivals[k]) == 0 {
			delete(s.rivals, k)
		}
	}
	delete(s.lost, o)
	for _, k := range s.held[o] {
		if wanted[k] == nil {
			s.take(k)
		}
	}
	delete(s.held, o)

	var held []frontendKey
	for k, f := range wanted {
		if winner, ok := s.place(o, k, f); !ok {
			faults = append(faults, fmt.Sprintf("%s is taken by %s", k, s.title(winner)))
			continue
		}
		held = append(held, k)
	}
	if held != nil {
		s.held[o] = held
	}
	if faults != nil {
		slices.Sort(faults)
		s.faults[o] = faults
	} else {
		delete(s.faults, o)
	}
}

// place gives the front end to the owner, unless somebody has a better claim.
func (s *servicePlanner) place(o owner, k frontendKey, f *service.Frontend) (winner owner, ok bool) {
	mine := claim{owner: o, class: f.Class}
	if svc := s.services[o.key]; !o.pod && svc != nil {
		mine.created = svc.Created
	}
	now, taken := s.placed[k]
	if !taken {
		now = &placement{claim: mine}
		s.placed[k] = now
	}
	if now.owner != o {
		if now.claim.before(mine) {
			if s.rivals[k] == nil {
				s.rivals[k] = map[owner]struct{}{}
			}
			s.rivals[k][o] = struct{}{}
			s.lost[o] = append(s.lost[o], k)
			return now.owner, false
		}
		loser := now.owner
		s.held[loser] = slices.DeleteFunc(s.held[loser], func(h frontendKey) bool { return h == k })
		s.dirty[loser] = struct{}{}
	}
	if now.claim != mine {
		s.dirtyRivals(k) // to lose to somebody else, or to win over a weaker claim
	}
	now.claim = mine
	s.write(k, f, now)
	return o, true
}

// take removes a front end and lets those who wanted it try again.
func (s *servicePlanner) take(k frontendKey) {
	s.write(k, nil, s.placed[k])
	delete(s.placed, k)
	s.dirtyRivals(k)
}

func (s *servicePlanner) dirtyRivals(k frontendKey) {
	for o := range s.rivals[k] {
		s.dirty[o] = struct{}{}
	}
}

// write brings a front end's rows from what is placed to what f says; nil: to
// none.
func (s *servicePlanner) write(k frontendKey, f *service.Frontend, now *placement) {
	if k.addr.IsUnspecified() {
		s.writeHostPort(k, f, now)
		return
	}
	names := serviceNamesOf(k.addr)
	key := KeyOf(k.addr, k.protocol, k.port)
	exists := f != nil
	if !exists {
		f = &service.Frontend{}
	}
	comment := s.elementComment(now.owner, f.PortName)

	affinity := s.affinityOf(now.owner, k.protocol, f)
	all := s.writeList(listKey{names.all, k.addr.Is4(), false}, key, &now.backends, f.Backends, affinity)
	local := s.writeList(listKey{names.local, k.addr.Is4(), true}, key, &now.local, f.LocalBackends, affinity)

	entry := all
	if f.Local && entry != "" {
		entry = names.localVerdict
	}
	restricted := f.SourceRanges != nil
	s.row(names.ranged, key, Element{Verdict: entry}, restricted && entry != "")
	s.row(names.inside, key, Element{Verdict: all}, f.Local && all != "")
	s.row(names.outside, key, Element{Verdict: local}, f.Local && local != "")
	if restricted && entry != "" {
		entry = names.rangesVerdict
	}
	s.row(names.services, key, Element{Verdict: entry, Comment: comment}, entry != "")
	s.writeRanges(names, key, f, now)

	refused := exists && (restricted || all == "" || f.Local && local == "")
	verdict := string(Drop)
	switch {
	case f.Refusal == service.Reject && restricted:
		verdict = names.rangesRefuseVerdict
	case f.Refusal == service.Reject:
		verdict = refuseVerdict
	}
	s.row(names.none, key, Element{Verdict: verdict, Comment: comment}, refused)
	s.row(names.keepSource, key, Element{}, f.Local && local != "")

	if clusterIP := exists && f.Class == service.ClusterIP; clusterIP != now.clusterIP {
		now.clusterIP = clusterIP
		if clusterIP && s.clusterIPs.hold(k.addr) || !clusterIP && s.clusterIPs.release(k.addr) {
			s.row(names.clusterIPs, KeyOf(k.addr), Element{}, clusterIP)
		}
	}
	if k.protocol == service.UDP {
		s.writeUDP(Frontend{k.addr, k.port}, f, exists)
	}
}

// writeHostPort brings the rows of a host port on every local address in line.
func (s *servicePlanner) writeHostPort(k frontendKey, f *service.Frontend, now *placement) {
	names := serviceNamesOf(k.addr)
	key := KeyOf(k.protocol, k.port)
	if old, ok := s.plan.Elements.Get(ElementKey{names.hostPorts, key}); ok {
		s.row(names.hostPortPods, key+old.Value, Element{}, false)
	}
	if f == nil {
		s.row(names.hostPorts, key, Element{}, false)
		return
	}
	to := KeyOf(f.Backends[0].Addr(), f.Backends[0].Port())
	s.row(names.hostPorts, key, Element{Value: to, Comment: s.elementComment(now.owner, "")}, true)
	s.row(names.hostPortPods, key+to, Element{}, true)
}

// row asks for an element, or for its absence.
func (s *servicePlanner) row(set, key string, e Element, want bool) {
	if want {
		s.plan.Elements.Set(ElementKey{set, key}, e)
	} else {
		s.plan.Elements.Delete(ElementKey{set, key})
	}
}

// writeList brings the rows of a list of backends in line and returns the
// verdict that balances over it; none if the list is empty.
func (s *servicePlanner) writeList(l listKey, key string, now *list, backends []netip.AddrPort, a affinity) (verdict string) {
	old, want := *now, list{len(backends), a}
	if want.n == 0 {
		want.affinity = affinity{}
	}
	wasAffine, isAffine := old.affinity != affinity{}, want.affinity != affinity{}
	var stale []string // keys by identifier
	if wasAffine {
		for i := range old.n {
			if e, ok := s.plan.Elements.Get(ElementKey{l.slots, key + KeyOf(uint32(i))}); ok {
				stale = append(stale, e.Value)
			}
		}
	}
	ids := backendIDs(backends, isAffine)
	for i, b := range backends {
		choice := KeyOf(uint32(i))
		if ids != nil {
			id := KeyOf(ids[i])
			s.plan.Elements.Set(ElementKey{l.slots, key + choice}, Element{Value: id})
			stale = slices.DeleteFunc(stale, func(s string) bool { return s == id })
			choice = id
		}
		s.plan.Elements.Set(ElementKey{l.backends, key + choice}, Element{Value: KeyOf(b.Addr(), b.Port())})
	}
	for _, id := range stale {
		s.plan.Elements.Delete(ElementKey{l.backends, key + id})
	}
	from := want.n
	if wasAffine != isAffine {
		from = 0
	}
	for i := from; i < old.n; i++ {
		set := l.backends
		if wasAffine {
			set = l.slots
		}
		s.plan.Elements.Delete(ElementKey{set, key + KeyOf(uint32(i))})
	}
	if old != want {
		for _, b := range l.balancers(want) {
			s.hold(b)
		}
		for _, b := range l.balancers(old) {
			s.release(b)
		}
		*now = want
	}
	if use := s.balancers[balancer{balanceChain, l.is4, l.local, want}]; use != nil {
		verdict = use.verdict
	}
	return verdict
}

// backendIDs are numbers by which affinity remembers backends. They depend on
// the backend and not on its place in the list, so that clients stay where they
// are when the list changes. The highest bit sets them apart from slots.
func backendIDs(backends []netip.AddrPort, wanted bool) []uint32 {
	if !wanted {
		return nil
	}
	ids := make([]uint32, len(backends))
	used := make(map[uint32]bool, len(backends))
	for i, b := range backends {
		h := fnv.New32a()
		h.Write([]byte(KeyOf(b.Addr(), b.Port())))
		id := h.Sum32() | 1<<31
		for used[id] {
			id = (id + 1) | 1<<31
		}
		used[id] = true
		ids[i] = id
	}
	return ids
}

func (s *servicePlanner) writeRanges(names *serviceNames, key string, f *service.Frontend, now *placement) {
	var b netipx.IPSetBuilder
	for _, p := range f.SourceRanges {
		b.AddPrefix(p)
	}
	// Merged, because the intervals of a set must not overlap. The builder
	// complains of invalid prefixes only, and leaves them out.
	set, _ := b.IPSet()
	var ranges []netipx.IPRange
	if set != nil {
		ranges = set.Ranges()
	}
	for _, r := range now.ranges {
		if !slices.Contains(ranges, r) {
			s.row(names.ranges, key+KeyOf(r.From()), Element{}, false)
		}
	}
	for _, r := range ranges {
		s.row(names.ranges, key+KeyOf(r.From()), Element{End: key + KeyOf(r.To())}, true)
	}
	now.ranges = ranges
}

func (s *servicePlanner) writeUDP(k Frontend, f *service.Frontend, exists bool) {
	if !exists {
		s.plan.UDPFrontends.Delete(k)
		return
	}
	s.plan.UDPFrontends.Set(k, f.Serving)
}

// elementComment names a front end's owner, within the 127 bytes that nft
// allows.
func (s *servicePlanner) elementComment(o owner, portName string) string {
	text := s.title(o)
	if portName != "" {
		text += ":" + portName
	}
	if len(text) > 127 {
		text = strings.ToValidUTF8(text[:124], "") + "..."
	}
	return text
}
