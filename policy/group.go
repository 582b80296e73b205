package policy

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// group is a Group with what it is made of.
type group struct {
	name      string
	direction Direction
	policies  []*compiledPolicy // by key
	ports     []NamedPort       // that ingress rules name, as the group's endpoints have them
	members   int               // local endpoints
	draft     *Group            // refers to sets by keys
	unions    map[string]*union // that the draft refers to, by key
	compiled  *Group            // as the last Delta told of it
}

// hashOf shortens a definition to a name's worth. 64 bits, so that nobody can
// look for policies whose names collide with somebody else's.
func hashOf(definition []byte) string {
	sum := sha256.Sum256(definition)
	return fmt.Sprintf("%x", sum[:8])
}

// assign gives the local endpoints that may have changed their groups, and
// returns the groups that nobody is left in.
func (c *Compiler) assign(d *Delta) (emptied []*group) {
	touched := map[*group]struct{}{}
	applying := map[string]*applicable{}
	for _, key := range slices.SortedFunc(maps.Keys(c.dirtyLocals), compareKeys) {
		e, l := c.endpoints[key], c.locals[key]
		var groups [2]*group
		present := e != nil && e.subject != nil
		if present {
			selected := selectedBy(e.subject)
			a := applying[selected]
			if a == nil {
				a = applicableTo(e.subject)
				applying[selected] = a
			}
			for dir := range groups {
				groups[dir] = c.groupOf(Direction(dir), a, e)
			}
		}
		var before [2]*group
		if l != nil {
			before = l.groups
		}
		for dir := range groups {
			if g := groups[dir]; g != nil {
				g.members++
			}
			if g := before[dir]; g != nil {
				g.members--
				touched[g] = struct{}{}
			}
		}
		switch {
		case !present && l != nil:
			delete(c.locals, key)
			d.Endpoints = append(d.Endpoints, EndpointChange{Key: key, Gone: true})
		case present && (l == nil || groups != before):
			c.locals[key] = &local{groups}
			d.Endpoints = append(d.Endpoints, EndpointChange{Key: key, Groups: [2]string{groups[Ingress].nameOrNone(), groups[Egress].nameOrNone()}})
		}
	}
	for g := range touched {
		if g.members == 0 {
			emptied = append(emptied, g)
		}
	}
	return emptied
}

func (g *group) nameOrNone() string {
	if g == nil {
		return ""
	}
	return g.name
}

// applicable is what endpoints that the same selectors select have in common.
type applicable struct {
	policies [2][]*compiledPolicy // by Direction, by key
	subjects [2][]string          // by Direction: the ids of their selections, sorted
	named    map[NamedPort]struct{}
	groups   [2]map[string]*group // by the ports that the names stand for
}

// selectedBy is the same for identities that the same selectors select.
func selectedBy(id *identity[*compiledPolicy]) string {
	ids := make([]string, len(id.selectors))
	for i, s := range id.selectors {
		ids[i] = string(s.id[:])
	}
	slices.Sort(ids)
	return strings.Join(ids, "")
}

func applicableTo(id *identity[*compiledPolicy]) *applicable {
	a := &applicable{named: map[NamedPort]struct{}{}, groups: [2]map[string]*group{{}, {}}}
	for _, s := range id.selectors {
		for _, cp := range s.users {
			for dir, isolates := range cp.isolates {
				if isolates {
					a.policies[dir] = append(a.policies[dir], cp)
					a.subjects[dir] = append(a.subjects[dir], string(s.id[:]))
				}
			}
			if cp.isolates[Ingress] {
				maps.Copy(a.named, cp.named)
			}
		}
	}
	for dir, policies := range a.policies {
		slices.Sort(a.subjects[dir])
		a.subjects[dir] = slices.Compact(a.subjects[dir])
		// They are all in one namespace.
		slices.SortFunc(policies, func(x, y *compiledPolicy) int { return strings.Compare(x.key.Name, y.key.Name) })
	}
	return a
}

// groupOf finds or makes the group of an endpoint; nil if it is not isolated.
func (c *Compiler) groupOf(dir Direction, a *applicable, e *endpoint) *group {
	if len(a.policies[dir]) == 0 {
		return nil
	}
	var ports []NamedPort
	if dir == Ingress {
		ports = resolve(a.named, e.ports)
	}
	portsText := fmt.Sprint(ports)
	g := a.groups[dir][portsText]
	if g == nil {
		g = c.group(dir, a, ports, portsText)
		a.groups[dir][portsText] = g
	}
	return g
}

// group finds or makes a group. It is named by how its policies select pods, not
// by the policies: one more with a selector like another's does not rename it.
func (c *Compiler) group(dir Direction, a *applicable, ports []NamedPort, portsText string) *group {
	name := [...]string{"in-", "out-"}[dir] + hashOf([]byte(portsText+"\n"+strings.Join(a.subjects[dir], "")))
	g := c.groups[name]
	if g == nil {
		g = &group{name: name, direction: dir, ports: ports}
		c.groups[name] = g
	}
	// A policy that was deleted and made anew is another value under its name.
	if policies := a.policies[dir]; !slices.Equal(g.policies, policies) {
		for _, cp := range g.policies {
			delete(cp.groups, g)
		}
		g.policies = policies
		c.dirtyGroups[g] = struct{}{}
		for _, cp := range policies {
			cp.groups[g] = struct{}{}
		}
	}
	return g
}

// resolve returns the ports that somebody names, sorted.
func resolve(named map[NamedPort]struct{}, ports []NamedPort) []NamedPort {
	var out []NamedPort
	for _, p := range ports {
		if _, used := named[NamedPort{Name: p.Name, Protocol: p.Protocol}]; used {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b NamedPort) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return slices.Compact(out)
}

// classify compiles what changed: first what is needed from now on, so that
// unions that go on being used are never gone in between, then what is gone.
func (c *Compiler) classify(d *Delta, emptied []*group) {
	if families := [2]bool{c.localAddrs[IPv4] > 0, c.localAddrs[IPv6] > 0}; families != c.families {
		c.families = families
		for _, g := range c.groups {
			c.dirtyGroups[g] = struct{}{}
		}
	}
	for _, g := range emptied {
		delete(c.dirtyGroups, g)
		delete(c.groups, g.name)
		for _, cp := range g.policies {
			delete(cp.groups, g)
		}
	}
	unused := map[*group]map[string]*union{}
	for g := range c.dirtyGroups {
		draft, definitions := c.compileGroup(g)
		unused[g] = g.unions
		g.draft, g.unions = draft, make(map[string]*union, len(definitions))
		for key, def := range definitions {
			g.unions[key] = c.acquire(def, g)
			delete(unused[g], key)
		}
	}
	for _, g := range emptied {
		unused[g] = g.unions
		if g.compiled != nil {
			d.GroupsGone = append(d.GroupsGone, g.name)
		}
	}
	for g, unions := range unused {
		for _, u := range unions {
			c.release(u, g)
		}
	}
	renamed := c.nameUnions(d)
	maps.Copy(renamed, c.dirtyGroups)
	for g := range renamed {
		if compiled := g.resolve(); !reflect.DeepEqual(g.compiled, compiled) {
			g.compiled = compiled
			d.Groups = append(d.Groups, compiled)
		}
	}
	slices.SortFunc(d.Groups, func(a, b *Group) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(d.GroupsGone)
}

// resolve puts the sets' names into the draft.
func (g *group) resolve() *Group {
	out := *g.draft
	for f, key := range out.NamedPorts {
		if key != "" {
			out.NamedPorts[f] = g.unions[key].name
		}
	}
	out.Rest = g.resolveClass(out.Rest)
	out.Classes = slices.Clone(out.Classes)
	for i, class := range out.Classes {
		out.Classes[i] = g.resolveClass(class)
	}
	return &out
}

func (g *group) resolveClass(class Class) Class {
	for f, peers := range class.Peers {
		sets := slices.Clone(peers.Sets)
		for i, key := range sets {
			sets[i] = g.unions[key].name
		}
		class.Peers[f].Sets = sets
	}
	return class
}

// listed names some things: a few by their names, the others by their number.
func listed[T fmt.Stringer](things []T) string {
	const few = 4
	var words []string
	for _, t := range things[:min(few, len(things))] {
		words = append(words, t.String())
	}
	slices.Sort(words)
	text := strings.Join(words, ", ")
	if more := len(things) - few; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
