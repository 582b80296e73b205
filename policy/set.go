package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// definition is what a set stands for.
type definition struct {
	name   string
	kind   SetKind
	family Family

	selections []*selection // that give members
	literals   []netip.Addr // Addresses: members whatever happens
	ranges     []netipx.IPRange
	terms      []term // AddressPorts
}

// term is one named port of an egress rule with one of the rule's peers.
type term struct {
	peer     *selection
	ranges   []netipx.IPRange // if set, only addresses in these
	name     string
	protocol uint8
}

// key is the same for terms that mean the same.
func (t term) key() string {
	return fmt.Sprintf("%x %v %d/%q\n", t.peer.id, t.ranges, t.protocol, t.name)
}

// String is such as "app=db in shop: tcp/sql".
func (t term) String() string {
	text := t.peer.String()
	if t.ranges != nil {
		text = "pods with addresses in blocks"
	}
	return text + ": " + Port{Protocol: t.protocol, Name: t.name}.String()
}

// set is a set in use.
type set struct {
	definition
	refs      int // groups
	selectors []*selector[*set]
}

// acquire returns the set of a definition, made if nobody had use for it yet.
func (c *Compiler) acquire(def definition) *set {
	s := c.sets[def.name]
	if s == nil {
		s = &set{definition: def}
		c.sets[def.name] = s
		c.fresh = append(c.fresh, s)
		for _, sel := range def.selections {
			s.selectors = append(s.selectors, c.peers.use(sel, s))
		}
	}
	s.refs++
	return s
}

// release undoes acquire. With the last reference the set is gone.
func (c *Compiler) release(s *set, d *Delta) {
	if s.refs--; s.refs > 0 {
		return
	}
	delete(c.sets, s.name)
	change := SetChange{Set: s.describe(), Gone: true, Ranges: s.ranges}
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
		d.Sets = append(d.Sets, SetChange{Set: s.describe(), New: true, Added: c.members(s), Ranges: s.ranges})
	}
	c.fresh = nil
	slices.SortFunc(d.Sets, func(a, b SetChange) int { return strings.Compare(a.Name, b.Name) })
}

func (s *set) describe() Set {
	out := Set{Name: s.name, Kind: s.kind, Family: s.family, Comment: listed(s.selections)}
	if s.kind == AddressPorts {
		out.Comment = listed(s.terms)
	}
	return out
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
	if c.shared == 0 && len(s.literals) == 0 {
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
func (s *set) appendElements(out []Member, e *endpoint, a netip.Addr) []Member {
	if FamilyOf(a) != s.family {
		return out
	}
	if s.kind == Addresses {
		return append(out, Member{Addr: a})
	}
	start := len(out)
	for _, t := range s.terms {
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
	after := c.elements(addrs)
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
		for _, e := range c.holders[a] {
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
