package plan

import (
	"fmt"
	"hash/fnv"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/policy"
)

// The verdict maps that hand a local pod's packets to its policy's chains, and
// the sets of the pods that they have to decide for. A pod that no policy
// isolates is in none of them.
const (
	mapFromPod = "from-pod"
	mapToPod   = "to-pod"

	// setIsolatedFrom and setIsolatedTo make policy fail closed. nf_tables reads
	// rules as of the moment when a packet enters a base chain, but elements as of
	// the moment of the look-up: a packet may be led to a chain that it sees empty.
	setIsolatedFrom = "isolated-from"
	setIsolatedTo   = "isolated-to"

	// chainToPods is where packets go that egress policy allows: the receiver's
	// policy decides. In the input hook, where there is no receiving pod, it
	// accepts.
	chainToPods = "to-pods"
)

// policyPlanner plans network policy: a chain per group of local pods, a chain
// per port class of it, and the sets of peers that groups share.
type policyPlanner struct {
	plan     *Plan
	compiler *policy.Compiler

	interfaces map[api.Key]string    // host interfaces of local endpoints, as told
	moved      map[api.Key]struct{}  // those that changed since the last flush
	dispatched map[api.Key]dispatch  // what the verdict maps have
	holders    map[string]api.Key    // host interface → the endpoint that it is dispatched for
	groups     map[string]groupParts // by group
}

// dispatch is how an endpoint's packets get to its groups.
type dispatch struct {
	hostInterface string
	groups        [2]string // by policy.Direction
}

// groupParts is what one group is planned as.
type groupParts struct {
	chains   map[string]Chain
	ports    string // the map's name; "" if no class depends on the port
	portsSet Set
	elements map[ElementKey]Element
}

func newPolicyPlanner(p *Plan) *policyPlanner {
	for _, name := range []string{mapFromPod, mapToPod} {
		p.Sets.Set(name, Set{Key: []Type{IfName}, Value: []Type{VerdictType}})
	}
	for _, name := range []string{setIsolatedFrom, setIsolatedTo} {
		p.Sets.Set(name, Set{Key: []Type{IfName}, Role: Guards})
	}
	p.Chains.Set(chainToPods, Chain{Rules: append(ingressRules(), R(Accept))})
	return &policyPlanner{
		plan: p, compiler: policy.NewCompiler(),
		interfaces: map[api.Key]string{}, moved: map[api.Key]struct{}{},
		dispatched: map[api.Key]dispatch{}, holders: map[string]api.Key{}, groups: map[string]groupParts{},
	}
}

func (pp *policyPlanner) setNamespace(name string, labels map[string]string) {
	pp.compiler.SetNamespace(name, labels)
}

func (pp *policyPlanner) deleteNamespace(name string) { pp.compiler.DeleteNamespace(name) }

// setPolicy takes in a policy. Of one that is not fully understood, the rest
// holds, which allows less than was meant; the error says what is missing.
func (pp *policyPlanner) setPolicy(np *networkingv1.NetworkPolicy) error {
	p, err := policy.Parse(np)
	if p == nil {
		pp.compiler.DeletePolicy(api.KeyOf(np))
		return err
	}
	pp.compiler.SetPolicy(p)
	return err
}

func (pp *policyPlanner) deletePolicy(key api.Key) { pp.compiler.DeletePolicy(key) }

// setEndpoint takes in an endpoint; hostInterface is empty for those of other
// nodes.
func (pp *policyPlanner) setEndpoint(key api.Key, ep policy.Endpoint, hostInterface string) {
	ep.Key, ep.Local = key, hostInterface != ""
	pp.compiler.SetEndpoint(ep)
	pp.bind(key, hostInterface)
}

func (pp *policyPlanner) deleteEndpoint(key api.Key) {
	pp.compiler.DeleteEndpoint(key)
	pp.bind(key, "")
}

func (pp *policyPlanner) bind(key api.Key, hostInterface string) {
	if pp.interfaces[key] == hostInterface {
		return
	}
	pp.moved[key] = struct{}{}
	if hostInterface == "" {
		delete(pp.interfaces, key)
	} else {
		pp.interfaces[key] = hostInterface
	}
}

// flush plans what the changes since the last flush make different.
func (pp *policyPlanner) flush() {
	d := pp.compiler.Flush()
	for _, change := range d.Sets {
		pp.planSet(change)
	}
	for _, name := range d.GroupsGone {
		pp.planGroup(name, groupParts{})
	}
	for _, g := range d.Groups {
		pp.planGroup(g.Name, partsOf(g))
	}
	pp.planDispatch(d.Endpoints)
}

// planDispatch first takes out what is no more, so that an interface can go from
// one endpoint to another.
func (pp *policyPlanner) planDispatch(changes []policy.EndpointChange) {
	next := map[api.Key]dispatch{}
	for key := range pp.moved {
		next[key] = dispatch{pp.interfaces[key], pp.dispatched[key].groups}
	}
	for _, e := range changes {
		next[e.Key] = dispatch{pp.interfaces[e.Key], e.Groups}
	}
	clear(pp.moved)
	for key := range next {
		before, was := pp.dispatched[key]
		delete(pp.dispatched, key)
		if was && pp.holders[before.hostInterface] == key {
			delete(pp.holders, before.hostInterface)
			if before.hostInterface != next[key].hostInterface {
				pp.dispatch(dispatch{hostInterface: before.hostInterface})
			}
		}
	}
	for key, d := range next {
		if d.hostInterface == "" {
			continue
		}
		pp.dispatched[key] = d
		pp.holders[d.hostInterface] = key
		pp.dispatch(d)
	}
}

func (pp *policyPlanner) dispatch(d dispatch) {
	in, out, name := d.groups[policy.Ingress], d.groups[policy.Egress], d.hostInterface
	setOrDelete(pp.plan.Elements, ElementKey{mapFromPod, KeyOf(name)}, Element{Verdict: string(Jump(out))}, out != "")
	setOrDelete(pp.plan.Elements, ElementKey{mapToPod, KeyOf(name)}, Element{Verdict: string(Jump(in))}, in != "")
	setOrDelete(pp.plan.Elements, ElementKey{setIsolatedFrom, KeyOf(name)}, Element{}, out != "")
	setOrDelete(pp.plan.Elements, ElementKey{setIsolatedTo, KeyOf(name)}, Element{}, in != "")
}

// egressRules and ingressRules ask the policy of the sending and of the
// receiving pod. The map jumps, so that a packet that finds no verdict in the
// group's chains comes back to the second rule.
func egressRules() []Rule { return policyRules(InInterface, mapFromPod, setIsolatedFrom, "egress") }

func ingressRules() []Rule { return policyRules(OutInterface, mapToPod, setIsolatedTo, "ingress") }

func policyRules(field Field, verdicts, isolated, direction string) []Rule {
	return []Rule{
		R(Dispatch{Concat{field}, verdicts}).WithComment(direction + " policy of local pods"),
		R(InSet{Fields: Concat{field}, Set: isolated}, Counter{}, Drop).WithComment(direction + " policy gave no verdict"),
	}
}

func setOrDelete[K comparable, V any](t demand[K, V], k K, v V, present bool) {
	if present {
		t.Set(k, v)
	} else {
		t.Delete(k)
	}
}

func (pp *policyPlanner) planSet(change policy.SetChange) {
	if change.New {
		set := Set{Key: []Type{families[change.Family].addr}, Interval: change.Kind == policy.Ranges, Role: Permits,
			Comment: R().WithComment(change.Comment).Comment}
		if change.Kind == policy.AddressPorts {
			set.Key = append(set.Key, InetProto, InetService)
		}
		pp.plan.Sets.Set(change.Name, set)
	}
	for _, m := range change.Removed {
		pp.plan.Elements.Delete(memberKey(change.Set, m))
	}
	for _, m := range change.Added {
		pp.plan.Elements.Set(memberKey(change.Set, m), Element{})
	}
	for _, r := range change.RangesRemoved {
		pp.plan.Elements.Delete(ElementKey{change.Name, KeyOf(r.From())})
	}
	for _, r := range change.RangesAdded {
		pp.plan.Elements.Set(ElementKey{change.Name, KeyOf(r.From())}, Element{End: KeyOf(r.To())})
	}
	if change.Gone {
		pp.plan.Sets.Delete(change.Name)
	}
}

func memberKey(s policy.Set, m policy.Member) ElementKey {
	if s.Kind == policy.AddressPorts {
		return ElementKey{s.Name, KeyOf(m.Addr, m.Protocol, m.Port)}
	}
	return ElementKey{s.Name, KeyOf(m.Addr)}
}

// planGroup replaces what a group is planned as; by nothing if it is gone.
func (pp *policyPlanner) planGroup(name string, next groupParts) {
	before := pp.groups[name]
	for k := range before.elements {
		if _, stays := next.elements[k]; !stays {
			pp.plan.Elements.Delete(k)
		}
	}
	for k, e := range next.elements {
		pp.plan.Elements.Set(k, e)
	}
	if before.ports != "" && before.ports != next.ports {
		pp.plan.Sets.Delete(before.ports)
	}
	if next.ports != "" {
		pp.plan.Sets.Set(next.ports, next.portsSet)
	}
	for chain := range before.chains {
		if _, stays := next.chains[chain]; !stays {
			pp.plan.Chains.Delete(chain)
		}
	}
	for chain, c := range next.chains {
		pp.plan.Chains.Set(chain, c)
	}
	if next.chains == nil {
		delete(pp.groups, name)
		return
	}
	pp.groups[name] = next
}

// partsOf plans a group. A class that allows everybody needs no chain.
//
// Only the group's own chain changes under its name. Chains of classes and the
// map that leads to them are named by what they hold, so that a packet that
// began with the old rules finds the old classes to the end.
func partsOf(g *policy.Group) groupParts {
	parts := groupParts{chains: map[string]Chain{}, elements: map[ElementKey]Element{}}
	allowed := allowedVerdict(g.Direction)
	verdicts := make([]Verdict, len(g.Classes))
	for i, c := range g.Classes {
		if everybody(c) {
			verdicts[i] = allowed
			continue
		}
		rules := append(classRules(g.Direction, c), R(Drop))
		chain := classChain(g, i) + contentSuffix(rules)
		verdicts[i] = Goto(chain)
		parts.chains[chain] = Chain{Rules: rules}
	}

	var rules []Rule
	for f, set := range g.NamedPorts {
		if set != "" {
			rules = append(rules, R(InSet{Fields: Concat{families[f].dst, L4Proto, DstPort}, Set: set}, allowed).WithComment("named ports"))
		}
	}
	if len(g.Ports) > 0 {
		parts.addPorts(g, verdicts)
		rules = append(rules, R(Dispatch{Concat{L4Proto, DstPort}, parts.ports}))
	}
	rules = append(rules, classRules(g.Direction, g.Rest)...)
	if !everybody(g.Rest) {
		rules = append(rules, R(Drop).WithComment(g.Comment))
	}
	parts.chains[g.Name] = Chain{Rules: rules}
	return parts
}

// contentSuffix tells rules apart by what they do, without their comments.
func contentSuffix(rules []Rule) string {
	h := fnv.New32a()
	for _, r := range rules {
		fmt.Fprintln(h, R(r.Statements...))
	}
	return fmt.Sprintf("-%08x", h.Sum32())
}

// classChain names a class by its first port, for people who read the ruleset.
func classChain(g *policy.Group, class int) string {
	first := g.Ports[slices.IndexFunc(g.Ports, func(p policy.PortClass) bool { return p.Class == class })]
	return fmt.Sprintf("%s-%s%d", g.Name, policy.ProtocolName(first.Protocol), first.First)
}

// addPorts plans the map from ports to classes. Only ranges need the costlier
// kind of map.
func (parts *groupParts) addPorts(g *policy.Group, verdicts []Verdict) {
	ranges := slices.ContainsFunc(g.Ports, func(p policy.PortClass) bool { return p.First != p.Last })
	h := fnv.New32a()
	for _, p := range g.Ports {
		fmt.Fprintln(h, p.Protocol, p.First, p.Last, verdicts[p.Class], ranges)
	}
	parts.ports = fmt.Sprintf("%s-ports-%08x", g.Name, h.Sum32())
	parts.portsSet = Set{Key: []Type{InetProto, InetService}, Value: []Type{VerdictType}, Interval: ranges}
	for _, p := range g.Ports {
		e := Element{Verdict: string(verdicts[p.Class])}
		if ranges {
			e.End = KeyOf(p.Protocol, p.Last)
		}
		parts.elements[ElementKey{parts.ports, KeyOf(p.Protocol, p.First)}] = e
	}
}

func allowedVerdict(d policy.Direction) Verdict {
	if d == policy.Egress {
		return Goto(chainToPods)
	}
	return Accept
}

func everybody(c policy.Class) bool { return c.Peers[policy.IPv4].Any && c.Peers[policy.IPv6].Any }

func classRules(d policy.Direction, c policy.Class) []Rule {
	allowed := allowedVerdict(d)
	if everybody(c) {
		return []Rule{R(allowed).WithComment(c.Comment)}
	}
	var rules []Rule
	for f, peers := range c.Peers {
		if peers.Any {
			rules = append(rules, R(Family(families[f].number), allowed).WithComment(c.Comment))
			continue
		}
		field := families[f].src
		if d == policy.Egress {
			field = families[f].dst
		}
		for _, set := range peers.Sets {
			rules = append(rules, R(InSet{Fields: Concat{field}, Set: set}, allowed).WithComment(c.Comment))
		}
	}
	return rules
}
