package policy

import (
	"bytes"
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// set is a set in use, with the definition of the union of its name.
type set struct {
	definition
	name      string
	comment   string
	selectors []*selector[*set] // of the definition's selections
}

// makeSet makes the set of a union.
func (c *Compiler) makeSet(u *union, comment string) {
	s := &set{definition: u.definition, name: u.name, comment: comment}
	for _, sel := range s.selections {
		s.selectors = append(s.selectors, c.peers.use(sel, s))
	}
	c.sets[s.name] = s
	c.fresh = append(c.fresh, s)
}

// redefine gives a set another definition under its name. The cost is that of
// what differs.
func (c *Compiler) redefine(s *set, def definition, d *Delta) {
	if s.kind == Ranges {
		d.Sets = append(d.Sets, SetChange{Set: s.describe(),
			RangesAdded: without(def.ranges, s.ranges, compareRanges), RangesRemoved: without(s.ranges, def.ranges, compareRanges)})
		s.definition = def
		return
	}
	selectors, touched, unused := c.reselect(s, def.selections)
	for _, peer := range changedPeers(s.terms, def.terms) {
		touched = append(touched, c.peers.selectors[peer.id])
	}
	addrs := append(without(s.literals, def.literals, netip.Addr.Compare), without(def.literals, s.literals, netip.Addr.Compare)...)
	for _, sel := range touched {
		for _, id := range sel.identities {
			for _, e := range id.endpoints {
				addrs = append(addrs, e.addrs...)
			}
		}
	}
	c.noteDifference(c.elementsOf(s, &s.definition, addrs), c.elementsOf(s, &def, addrs))
	for _, sel := range unused {
		c.peers.release(sel, s)
	}
	s.definition, s.selectors = def, selectors
}

// reselect finds the selectors that a set needs for other selections, and those
// that make a difference: the new and the unused.
func (c *Compiler) reselect(s *set, selections []*selection) (selectors, touched, unused []*selector[*set]) {
	have := make(map[selectionID]*selector[*set], len(s.selectors))
	for _, sel := range s.selectors {
		have[sel.id] = sel
	}
	for _, want := range selections {
		sel := have[want.id]
		if sel == nil {
			sel = c.peers.use(want, s)
			touched = append(touched, sel)
		}
		delete(have, want.id)
		selectors = append(selectors, sel)
	}
	unused = slices.Collect(maps.Values(have))
	return selectors, append(touched, unused...), unused
}

// changedPeers are the peers of the terms that only one of two lists has.
func changedPeers(a, b []term) (peers []*selection) {
	have := map[itemID]*selection{}
	for _, t := range a {
		have[t.id] = t.peer
	}
	for _, t := range b {
		if have[t.id] == nil {
			peers = append(peers, t.peer)
		}
		delete(have, t.id)
	}
	return slices.AppendSeq(peers, maps.Values(have))
}

// dropSet forgets a set that no union is named by.
func (c *Compiler) dropSet(s *set, d *Delta) {
	delete(c.sets, s.name)
	change := SetChange{Set: s.describe(), Gone: true, RangesRemoved: s.ranges}
	// What it had when the last Delta told of it.
	pending := c.pending[s]
	change.Removed = c.members(s)
	if len(pending) > 0 {
		change.Removed = slices.DeleteFunc(change.Removed, func(m Member) bool { return pending[m] })
	}
	for m, came := range pending {
		if !came {
			change.Removed = append(change.Removed, m)
		}
	}
	delete(c.pending, s)
	for _, sel := range s.selectors {
		c.peers.release(sel, s)
	}
	d.Sets = append(d.Sets, change)
}

// collect puts new sets and changed members into the delta.
func (c *Compiler) collect(d *Delta) {
	for s, members := range c.pending {
		if len(members) == 0 {
			continue // what came went again
		}
		change := SetChange{Set: s.describe()}
		for m, came := range members {
			if came {
				change.Added = append(change.Added, m)
			} else {
				change.Removed = append(change.Removed, m)
			}
		}
		d.Sets = append(d.Sets, change)
	}
	for _, s := range c.fresh {
		d.Sets = append(d.Sets, SetChange{Set: s.describe(), New: true, Added: c.members(s), RangesAdded: s.ranges})
	}
	c.fresh = nil
	slices.SortFunc(d.Sets, func(a, b SetChange) int { return strings.Compare(a.Name, b.Name) })
}

func (s *set) describe() Set {
	return Set{Name: s.name, Kind: s.kind, Family: s.family, Comment: s.comment}
}

// members are all members of a set, from what the compiler knows now: sets have
// no lists of their own.
func (c *Compiler) members(s *set) []Member {
	n := len(s.literals)
	for _, sel := range s.selectors {
		n += len(sel.identities)
	}
	out := make([]Member, 0, n)
	for _, a := range s.literals {
		out = append(out, Member{Addr: a})
	}
	c.visit++
	for _, sel := range s.selectors {
		for _, id := range sel.identities {
			if id.visited == c.visit {
				continue
			}
			id.visited = c.visit
			for _, e := range id.endpoints {
				for _, a := range e.addrs {
					out = s.appendElements(out, e, a)
				}
			}
		}
	}
	if len(c.shared) == 0 && len(s.literals) == 0 {
		return out // nothing can be in it twice
	}
	seen := make(map[Member]struct{}, len(out))
	return slices.DeleteFunc(out, func(m Member) bool {
		_, twice := seen[m]
		seen[m] = struct{}{}
		return twice
	})
}

// appendElements appends what an endpoint that a selector of the set selects
// gives to the set with one of its addresses.
func (def *definition) appendElements(out []Member, e *endpoint, a netip.Addr) []Member {
	if FamilyOf(a) != def.family {
		return out
	}
	if def.kind == Addresses {
		return append(out, Member{Addr: a})
	}
	start := len(out)
	for _, t := range def.terms {
		if t.ranges != nil && !inRanges(t.ranges, a) || !e.selectedBy(t.peer) {
			continue
		}
		for _, p := range e.ports {
			m := Member{a, p.Protocol, p.Port}
			if p.Name == t.name && p.Protocol == t.protocol && !slices.Contains(out[start:], m) {
				out = append(out, m)
			}
		}
	}
	return out
}

func (e *endpoint) selectedBy(sel *selection) bool {
	return slices.ContainsFunc(e.peer.selectors, func(s *selector[*set]) bool { return s.id == sel.id })
}

// elementsOf are the members that a set has by some addresses if it has the
// definition.
func (c *Compiler) elementsOf(s *set, def *definition, addrs []netip.Addr) map[element]struct{} {
	out := map[element]struct{}{}
	var buf []Member
	for _, a := range addrs {
		if _, literal := slices.BinarySearchFunc(def.literals, a, netip.Addr.Compare); literal {
			out[element{s, Member{Addr: a}}] = struct{}{}
			continue
		}
		for e := range c.holdersOf(a) {
			if !slices.ContainsFunc(e.peer.selectors, func(sel *selector[*set]) bool { return def.selects(sel.id) }) {
				continue
			}
			buf = def.appendElements(buf[:0], e, a)
			for _, m := range buf {
				out[element{s, m}] = struct{}{}
			}
		}
	}
	return out
}

func (def *definition) selects(id selectionID) bool {
	_, found := slices.BinarySearchFunc(def.selections, id, func(s *selection, id selectionID) int { return bytes.Compare(s.id[:], id[:]) })
	return found
}

// element is a member of a certain set.
type element struct {
	set *set
	Member
}

// track makes a change to the endpoints that hold some addresses, and notes
// which members of sets come and go by it.
func (c *Compiler) track(addrs []netip.Addr, change func()) {
	if len(c.sets) == 0 {
		change()
		return
	}
	before := c.elements(addrs)
	change()
	c.noteDifference(before, c.elements(addrs))
}

func (c *Compiler) noteDifference(before, after map[element]struct{}) {
	for el := range before {
		if _, stays := after[el]; !stays {
			c.note(el, false)
		}
	}
	for el := range after {
		if _, was := before[el]; !was {
			c.note(el, true)
		}
	}
}

// elements are all members of sets that some addresses are by their holders. An
// address is in a set as long as any of its holders is selected.
func (c *Compiler) elements(addrs []netip.Addr) map[element]struct{} {
	out := map[element]struct{}{}
	var buf []Member
	for _, a := range addrs {
		for e := range c.holdersOf(a) {
			for _, sel := range e.peer.selectors {
				for _, s := range sel.users {
					if slices.Contains(s.literals, a) {
						continue
					}
					buf = s.appendElements(buf[:0], e, a)
					for _, m := range buf {
						out[element{s, m}] = struct{}{}
					}
				}
			}
		}
	}
	return out
}

func (c *Compiler) note(el element, came bool) {
	p := c.pending[el.set]
	if p == nil {
		p = map[Member]bool{}
		c.pending[el.set] = p
	}
	if was, noted := p[el.Member]; noted && was != came {
		delete(p, el.Member)
		return
	}
	p[el.Member] = came
}

// without returns what is in a and not in b, both sorted.
func without[T any](a, b []T, compare func(T, T) int) (out []T) {
	for _, v := range a {
		for len(b) > 0 && compare(b[0], v) < 0 {
			b = b[1:]
		}
		if len(b) == 0 || compare(b[0], v) != 0 {
			out = append(out, v)
		}
	}
	return out
}

func compareRanges(a, b netipx.IPRange) int {
	return cmp.Or(a.From().Compare(b.From()), a.To().Compare(b.To()))
}
