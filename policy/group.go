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
	compiled  *Group
	sets      []*set // that compiled refers to
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
				}
			}
			if cp.isolates[Ingress] {
				maps.Copy(a.named, cp.named)
			}
		}
	}
	for _, policies := range a.policies {
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
		g = c.group(dir, a.policies[dir], ports, portsText)
		a.groups[dir][portsText] = g
	}
	return g
}

func (c *Compiler) group(dir Direction, policies []*compiledPolicy, ports []NamedPort, portsText string) *group {
	definition := []byte(portsText + "\n" + policies[0].key.Namespace)
	for _, cp := range policies {
		definition = append(append(definition, '/'), cp.key.Name...)
	}
	name := [...]string{"in-", "out-"}[dir] + hashOf(definition)
	g := c.groups[name]
	if g == nil {
		g = &group{name: name, direction: dir, ports: ports}
		c.groups[name] = g
	}
	// A policy that was deleted and made anew is another value under its name.
	if !slices.Equal(g.policies, policies) {
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

// classify compiles what changed: first what is needed from now on, so that sets
// that go on being used are never gone in between, then what is gone.
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
	var unused []*set
	for _, g := range slices.SortedFunc(maps.Keys(c.dirtyGroups), func(a, b *group) int { return strings.Compare(a.name, b.name) }) {
		compiled, definitions := c.compileGroup(g)
		sets := make([]*set, 0, len(definitions))
		for _, def := range definitions {
			sets = append(sets, c.acquire(def))
		}
		unused = append(unused, g.sets...)
		g.sets = sets
		if g.compiled == nil || !reflect.DeepEqual(g.compiled, compiled) {
			g.compiled = compiled
			d.Groups = append(d.Groups, compiled)
		}
	}
	for _, g := range emptied {
		unused = append(unused, g.sets...)
		if g.compiled != nil {
			d.GroupsGone = append(d.GroupsGone, g.name)
		}
	}
	slices.Sort(d.GroupsGone)
	for _, s := range unused {
		c.release(s, d)
	}
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
