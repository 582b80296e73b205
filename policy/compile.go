package policy

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/api"
)

// Compiler keeps the compiled form of all policies for one node, as namespaces,
// endpoints and policies come, change and go in any order. Setting what is there
// already does nothing. It is not safe for concurrent use.
//
// A change of an endpoint or a namespace's labels costs what its labels'
// selectors and their sets contain of it; a change of a policy costs the groups
// that it applies to. Selectors that no policy of a local endpoint uses are not
// evaluated.
type Compiler struct {
	endpoints map[api.Key]*endpoint
	holders   map[netip.Addr]*endpoint
	shared    map[netip.Addr][]*endpoint // the other holders, while an address changes hands
	policies  map[api.Key]*compiledPolicy

	// subjects finds the policies of local endpoints, peers finds the members
	// of sets.
	subjects *matcher[*compiledPolicy]
	peers    *matcher[*set]

	locals   map[api.Key]*local // endpoints that a Delta has told of
	groups   map[string]*group
	unions   []*union // by key
	sets     map[string]*set
	fresh    []*set // since the last Flush
	visit    uint64 // marks identities that members has been to
	everyPod *selection

	// What the next Flush has to look at.
	dirtyLocals map[api.Key]struct{}
	dirtyGroups map[*group]struct{}
	doubtful    map[*union]struct{}      // that may need another name
	vacated     []string                 // names that a union had
	pending     map[*set]map[Member]bool // members that came (true) and went

	localAddrs [2]int  // addresses of local endpoints, by Family
	families   [2]bool // those that sets are made for
}

// endpoint is what the compiler remembers of an Endpoint.
type endpoint struct {
	key     api.Key
	addrs   []netip.Addr // sorted
	ports   []NamedPort
	peer    *identity[*set]
	subject *identity[*compiledPolicy] // nil: not local
}

// local is a local endpoint as the last Delta told of it.
type local struct{ groups [2]*group }

// NewCompiler returns a Compiler that knows nothing yet.
func NewCompiler() *Compiler {
	return &Compiler{
		endpoints:   map[api.Key]*endpoint{},
		holders:     map[netip.Addr]*endpoint{},
		shared:      map[netip.Addr][]*endpoint{},
		policies:    map[api.Key]*compiledPolicy{},
		subjects:    newMatcher[*compiledPolicy](),
		peers:       newMatcher[*set](),
		locals:      map[api.Key]*local{},
		groups:      map[string]*group{},
		sets:        map[string]*set{},
		everyPod:    newSelection(selectorOf(), selectorOf()),
		dirtyLocals: map[api.Key]struct{}{},
		dirtyGroups: map[*group]struct{}{},
		doubtful:    map[*union]struct{}{},
		pending:     map[*set]map[Member]bool{},
	}
}

// SetNamespace tells a namespace's labels.
func (c *Compiler) SetNamespace(name string, labels map[string]string) {
	c.relabel(name, labels, true)
}

// DeleteNamespace forgets a namespace's labels. Its endpoints stay until they
// are deleted themselves.
func (c *Compiler) DeleteNamespace(name string) { c.relabel(name, nil, false) }

func (c *Compiler) relabel(name string, labels map[string]string, known bool) {
	if !c.peers.relabel(name, labels, known) {
		return
	}
	var addrs []netip.Addr
	for _, id := range c.peers.namespace(name).identities {
		for _, e := range id.endpoints {
			addrs = append(addrs, e.addrs...)
		}
	}
	c.track(addrs, func() { c.peers.rematch(name) })
}

// SetEndpoint tells of an endpoint. The maps and slices in it are not kept.
func (c *Compiler) SetEndpoint(e Endpoint) {
	next := &endpoint{key: e.Key, addrs: canonical(e.Addrs), ports: slices.Clone(e.Ports)}
	labels := newLabelSet(e.Key.Namespace, e.Labels)
	old := c.endpoints[e.Key]
	if old != nil && (old.subject != nil) == e.Local && old.peer.id == labels.id &&
		slices.Equal(old.addrs, next.addrs) && slices.Equal(old.ports, next.ports) {
		return
	}
	touched := next.addrs
	if old != nil {
		touched = canonical(append(slices.Clone(old.addrs), next.addrs...))
	}
	c.track(touched, func() {
		if old != nil {
			c.drop(old)
		}
		next.peer = c.peers.join(next, labels)
		if first := next.peer.endpoints[0]; slices.Equal(first.ports, next.ports) {
			next.ports = first.ports // of a deployment's pods, one copy
		}
		c.endpoints[next.key] = next
		for _, a := range next.addrs {
			c.hold(a, next)
		}
	})
	if e.Local {
		next.subject = c.subjects.join(next, labels)
		c.countLocal(next, 1)
		c.dirtyLocals[next.key] = struct{}{}
	}
}

// DeleteEndpoint forgets an endpoint.
func (c *Compiler) DeleteEndpoint(key api.Key) {
	if old := c.endpoints[key]; old != nil {
		c.track(old.addrs, func() { c.drop(old) })
	}
}

func (c *Compiler) drop(e *endpoint) {
	delete(c.endpoints, e.key)
	c.peers.leave(e.peer, e)
	for _, a := range e.addrs {
		c.unhold(a, e)
	}
	if e.subject != nil {
		c.subjects.leave(e.subject, e)
		c.countLocal(e, -1)
		c.dirtyLocals[e.key] = struct{}{}
	}
}

func (c *Compiler) countLocal(e *endpoint, n int) {
	for _, a := range e.addrs {
		c.localAddrs[FamilyOf(a)] += n
	}
}

func (c *Compiler) hold(a netip.Addr, e *endpoint) {
	if c.holders[a] == nil {
		c.holders[a] = e
	} else {
		c.shared[a] = append(c.shared[a], e)
	}
}

func (c *Compiler) unhold(a netip.Addr, e *endpoint) {
	others := remove(c.shared[a], e)
	if c.holders[a] == e {
		if delete(c.holders, a); len(others) > 0 {
			c.holders[a] = others[0]
			others = others[1:]
		}
	}
	if len(others) > 0 {
		c.shared[a] = others
	} else {
		delete(c.shared, a)
	}
}

// holdersOf are the endpoints that have an address.
func (c *Compiler) holdersOf(a netip.Addr) iter.Seq[*endpoint] {
	return func(yield func(*endpoint) bool) {
		if e := c.holders[a]; e == nil || !yield(e) {
			return
		}
		for _, e := range c.shared[a] {
			if !yield(e) {
				return
			}
		}
	}
}

// Within lists the endpoints that have an address in a prefix, each with all its
// addresses, which must not be changed. It costs as much as the prefix has
// addresses.
func (c *Compiler) Within(prefix netip.Prefix) iter.Seq2[api.Key, []netip.Addr] {
	return func(yield func(api.Key, []netip.Addr) bool) {
		for a := prefix.Masked().Addr(); prefix.Contains(a); a = a.Next() {
			for e := range c.holdersOf(a) {
				if !yield(e.key, e.addrs) {
					return
				}
			}
		}
	}
}

// canonical returns a sorted copy without duplicates; IPv4 in IPv6's clothes
// becomes IPv4.
func canonical(addrs []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		out[i] = a.Unmap().WithZone("")
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// SetPolicy tells of a policy, which is kept and must not be changed.
func (c *Compiler) SetPolicy(p *Policy) {
	cp := c.policies[p.Key]
	if cp == nil {
		cp = &compiledPolicy{key: p.Key, groups: map[*group]struct{}{}}
		c.policies[p.Key] = cp
	} else {
		c.touchSubjects(cp)
		c.subjects.release(cp.subject, cp)
	}
	cp.compile(p)
	cp.subject = c.subjects.use(newSelection(selectName(p.Key.Namespace), p.Pods), cp)
	c.touchSubjects(cp)
	for g := range cp.groups {
		c.dirtyGroups[g] = struct{}{}
	}
}

// DeletePolicy forgets a policy.
func (c *Compiler) DeletePolicy(key api.Key) {
	cp := c.policies[key]
	if cp == nil {
		return
	}
	c.touchSubjects(cp)
	c.subjects.release(cp.subject, cp)
	delete(c.policies, key)
}

// touchSubjects has the local endpoints that a policy selects looked at again.
func (c *Compiler) touchSubjects(cp *compiledPolicy) {
	for _, id := range cp.subject.identities {
		for _, e := range id.endpoints {
			c.dirtyLocals[e.key] = struct{}{}
		}
	}
}

// Flush brings the compiled form up to date and returns what that changed.
func (c *Compiler) Flush() Delta {
	var d Delta
	emptied := c.assign(&d)
	c.classify(&d, emptied)
	c.collect(&d)
	clear(c.dirtyLocals)
	clear(c.dirtyGroups)
	clear(c.pending)
	return d
}
