package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/twill-net/twill/api"
)

// program is the compiled form, accumulated from deltas and interpreted in
// memory: the compiler's other side in the tests.
type program struct {
	endpoints map[api.Key][2]string
	groups    map[string]*Group
	sets      map[string]*programSet
}

type programSet struct {
	Set
	members map[Member]struct{}
	ranges  []netipx.IPRange
}

func newProgram() *program {
	return &program{map[api.Key][2]string{}, map[string]*Group{}, map[string]*programSet{}}
}

// apply refuses deltas that a kernel would refuse: they create what exists,
// remove what does not, or leave references to nothing.
func (p *program) apply(d Delta) error {
	for _, change := range d.Sets {
		if err := p.applySet(change); err != nil {
			return fmt.Errorf("set %s: %w", change.Name, err)
		}
	}
	for _, g := range d.Groups {
		p.groups[g.Name] = g
	}
	for _, name := range d.GroupsGone {
		if _, ok := p.groups[name]; !ok {
			return fmt.Errorf("group %s is gone but never was", name)
		}
		delete(p.groups, name)
	}
	for _, e := range d.Endpoints {
		if _, ok := p.endpoints[e.Key]; e.Gone && !ok {
			return fmt.Errorf("endpoint %s is gone but never was", e.Key)
		}
		if e.Gone {
			delete(p.endpoints, e.Key)
		} else {
			p.endpoints[e.Key] = e.Groups
		}
	}
	return p.check()
}

func (p *program) applySet(change SetChange) error {
	s, ok := p.sets[change.Name]
	if ok == change.New {
		return fmt.Errorf("new is %t, but exists is %t", change.New, ok)
	}
	if change.New {
		s = &programSet{change.Set, map[Member]struct{}{}, nil}
		p.sets[change.Name] = s
	}
	if s.Set != change.Set {
		return fmt.Errorf("was %v, is %v", s.Set, change.Set)
	}
	for _, m := range change.Removed {
		if _, ok := s.members[m]; !ok {
			return fmt.Errorf("%s is removed but never was", m)
		}
		delete(s.members, m)
	}
	for _, m := range change.Added {
		if _, ok := s.members[m]; ok {
			return fmt.Errorf("%s is added twice", m)
		}
		if FamilyOf(m.Addr) != s.Family {
			return fmt.Errorf("%s is of the wrong family", m)
		}
		s.members[m] = struct{}{}
	}
	for _, r := range change.RangesRemoved {
		i := slices.Index(s.ranges, r)
		if i < 0 {
			return fmt.Errorf("%s is removed but never was", r)
		}
		s.ranges = slices.Delete(s.ranges, i, i+1)
	}
	s.ranges = append(s.ranges, change.RangesAdded...)
	slices.SortFunc(s.ranges, func(a, b netipx.IPRange) int { return a.From().Compare(b.From()) })
	for i := 1; i < len(s.ranges); i++ {
		if s.ranges[i-1].Overlaps(s.ranges[i]) {
			return fmt.Errorf("%s and %s overlap", s.ranges[i-1], s.ranges[i])
		}
	}
	if change.Gone {
		if len(s.members)+len(s.ranges) > 0 {
			return fmt.Errorf("is gone with %d members", len(s.members)+len(s.ranges))
		}
		delete(p.sets, change.Name)
	}
	return nil
}

func (p *program) check() error {
	used := map[string]bool{}
	for key, groups := range p.endpoints {
		for _, g := range groups {
			if _, ok := p.groups[g]; g != "" && !ok {
				return fmt.Errorf("endpoint %s refers to missing group %s", key, g)
			}
			used[g] = true
		}
	}
	for name, g := range p.groups {
		if !used[name] {
			return fmt.Errorf("group %s has no endpoint", name)
		}
		for _, c := range append([]Class{g.Rest, {Peers: [2]Allowed{{Sets: g.NamedPorts[:1]}, {Sets: g.NamedPorts[1:]}}}}, g.Classes...) {
			for _, a := range c.Peers {
				for _, s := range a.Sets {
					if _, ok := p.sets[s]; s != "" && !ok {
						return fmt.Errorf("group %s refers to missing set %s", name, s)
					}
					used[s] = true
				}
			}
		}
		for i := 1; i < len(g.Ports); i++ {
			if a, b := g.Ports[i-1], g.Ports[i]; a.Protocol == b.Protocol && a.Last >= b.First {
				return fmt.Errorf("group %s: ports %v and %v overlap", name, a, b)
			}
		}
	}
	for name := range p.sets {
		if !used[name] {
			return fmt.Errorf("set %s has no user", name)
		}
	}
	return nil
}

// allows interprets the compiled form. Protocols without ports have no port,
// not port 0.
func (p *program) allows(d Direction, pod api.Key, peer netip.Addr, proto uint8, port uint16) bool {
	name := p.endpoints[pod][d]
	if name == "" {
		return true
	}
	g, f := p.groups[name], FamilyOf(peer)
	if named := g.NamedPorts[f]; named != "" {
		if _, ok := p.sets[named].members[Member{peer, proto, port}]; ok {
			return true
		}
	}
	class := g.Rest
	if i := slices.IndexFunc(g.Ports, func(c PortClass) bool { return c.Protocol == proto && c.First <= port && port <= c.Last }); i >= 0 {
		class = g.Classes[g.Ports[i].Class]
	}
	allowed := class.Peers[f]
	return allowed.Any || slices.ContainsFunc(allowed.Sets, func(name string) bool {
		s := p.sets[name]
		_, ok := s.members[Member{Addr: peer}]
		return ok || inRanges(s.ranges, peer)
	})
}
