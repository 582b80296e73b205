package plan

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/twill-net/twill/service"
)

// The chains of services, which the base chains jump to.
const (
	// chainServices translates the destination; from nat prerouting and output.
	chainServices = "services"
	// chainServicesReject answers for front ends that nobody serves; from
	// filter input, forward and output.
	chainServicesReject = "services-reject"
	// chainServicesMasquerade makes the replies of translated connections come
	// back through this node; from nat postrouting.
	chainServicesMasquerade = "services-masquerade"
	chainServicesRefuse     = "services-refuse"
)

// clearMarkHooks are where the mark is taken back with which session affinity
// chose a backend: translation ends its chain, so that can't be done there, and
// after it routing looks at the mark. Each packet would pay for these hooks, so
// they are there only while some front end has affinity.
var clearMarkHooks = []string{"prerouting", "output"}

var refuseVerdict = string(Goto(chainServicesRefuse))

// serviceNames are the sets and maps of one family. A front end is the
// concatenation of address, protocol and port.
type serviceNames struct {
	services string // front end → how to balance it
	ranges   string // front end . source range: who is let in, for those with source ranges
	ranged   string // front end → how to balance it for those who are let in
	inside   string // front end with external policy Local → how for clients on this node
	outside  string // the same for all others
	none     string // front end → what becomes of what was not balanced

	all, local listNames // the backends of inside and outside; without policy Local, all

	affinity   string // front end . client → backend identifier; filled by rules
	affine     string // front ends with affinity
	keepSource string // front ends whose backends shall see the client's address
	clusterIPs string
	localPods  string // addresses of pods on this node
	hairpin    string // the same, as pairs of twice the same

	localVerdict, rangesVerdict string
}

// listNames are the maps of one kind of lists of backends.
type listNames struct {
	backends string // front end . slot (with affinity: identifier) → backend
	slots    string // with affinity: front end . slot → identifier
}

type listKey struct {
	listNames
	is4, local bool
}

var serviceNames4, serviceNames6 = namesWithSuffix("4"), namesWithSuffix("6")

func namesWithSuffix(suffix string) *serviceNames {
	return &serviceNames{
		services: "svc" + suffix, ranges: "svc-ranges" + suffix, ranged: "svc-ranged" + suffix,
		inside: "svc-inside" + suffix, outside: "svc-outside" + suffix, none: "svc-none" + suffix,
		all:      listNames{"ep" + suffix, "ep-slots" + suffix},
		local:    listNames{"ep-local" + suffix, "ep-local-slots" + suffix},
		affinity: "affinity" + suffix, affine: "svc-affine" + suffix, keepSource: "svc-keep-source" + suffix,
		clusterIPs: "cluster-ips" + suffix, localPods: "local-pods" + suffix, hairpin: "hairpin" + suffix,
		localVerdict: string(Goto("services-local" + suffix)), rangesVerdict: string(Goto("services-ranges" + suffix)),
	}
}

func serviceNamesOf(a netip.Addr) *serviceNames {
	if a.Is4() {
		return serviceNames4
	}
	return serviceNames6
}

func serviceNamesFor(family int) *serviceNames {
	if family == 4 {
		return serviceNames4
	}
	return serviceNames6
}

// planServiceChains asks for the chains, sets and maps that are always there.
func planServiceChains(p *Plan) {
	var services, reject []Rule
	for _, f := range families {
		n := serviceNamesFor(f.number)
		planServiceSets(p, f.addr, n)

		frontend := Concat{f.dst, L4Proto, DstPort}
		services = append(services, R(Dispatch{frontend, n.services}))
		p.Chains.Set("services-ranges"+f.suffix, Chain{Rules: []Rule{
			R(InSet{Fields: append(frontend[:3:3], f.src), Set: n.ranges}, Dispatch{frontend, n.ranged}).
				WithComment("source ranges of load balancers"),
		}})
		// Clients on this node count as having come from outside through the
		// load balancer, which would have chosen a node that has endpoints.
		p.Chains.Set("services-local"+f.suffix, Chain{Rules: []Rule{
			R(InSet{Fields: Concat{f.src}, Set: n.localPods}, Dispatch{frontend, n.inside}),
			R(LocalAddress{Source: true}, Dispatch{frontend, n.inside}),
			R(Dispatch{frontend, n.outside}).WithComment("external traffic policy Local"),
		}})

		isNew := CtState{"new"}
		reject = append(reject,
			R(isNew, Dispatch{frontend, n.none}),
			R(isNew, InSet{Fields: Concat{f.dst}, Set: n.clusterIPs}, Goto(chainServicesRefuse)).
				WithComment("a port that the service does not have"))
	}
	p.Chains.Set(chainServices, Chain{Rules: services})
	p.Chains.Set(chainServicesReject, Chain{Rules: reject})
	p.Chains.Set(chainServicesRefuse, Chain{Rules: []Rule{R(Reject{})}})
	planServiceMasquerade(p, false)
}

// planServiceMasquerade asks for the chain of what was translated. If Services are
// off, only connections to host ports are ours, and of these no replies get lost:
// the pod is on this node.
func planServiceMasquerade(p *Plan, off bool) {
	rules := []Rule{R(InPrefix{Field: SrcIP4, Prefix: loopback4}, Masquerade{}).WithComment("a pod can't answer to a loopback address")}
	for _, f := range families {
		n, origDst := serviceNamesFor(f.number), OrigDstIP4
		if f.number == 6 {
			origDst = OrigDstIP6
		}
		rules = append(rules, R(InSet{Fields: Concat{f.src, f.dst}, Set: n.hairpin}, Masquerade{}).WithComment("a pod reaches itself"))
		if off {
			continue
		}
		rules = append(rules, R(InSet{Fields: Concat{f.src}, Set: n.localPods}, Return))
		// The front end that was asked for, once it is translated. nft can only
		// print the original port where a rule says of which protocol.
		asked := Concat{origDst, L4Proto, OrigDstPort}
		for _, protocol := range []uint8{service.TCP, service.UDP, service.SCTP} {
			rules = append(rules, R(Proto(protocol), InSet{Fields: asked, Set: n.keepSource}, Return))
		}
	}
	if !off {
		// Replies to whoever is not on this node must pass it to be translated back.
		rules = append(rules, R(LocalAddress{Source: true}, Return), R(Masquerade{}))
	}
	p.Chains.Set(chainServicesMasquerade, Chain{Rules: rules})
}

func planServiceSets(p *Plan, addr Type, n *serviceNames) {
	frontend := []Type{addr, InetProto, InetService}
	with := func(more ...Type) []Type { return append(frontend[:3:3], more...) }
	for _, name := range []string{n.services, n.ranged, n.inside, n.outside, n.none} {
		p.Sets.Set(name, Set{Key: frontend, Value: []Type{VerdictType}})
	}
	for _, l := range []listNames{n.all, n.local} {
		p.Sets.Set(l.backends, Set{Key: with(Mark), Value: []Type{addr, InetService}})
		p.Sets.Set(l.slots, Set{Key: with(Mark), Value: []Type{Mark}})
	}
	p.Sets.Set(n.ranges, Set{Key: with(addr), Interval: true})
	p.Sets.Set(n.affinity, Set{Key: with(addr), Value: []Type{Mark}, Dynamic: true, Timeout: defaultAffinity})
	p.Sets.Set(n.affine, Set{Key: frontend})
	p.Sets.Set(n.keepSource, Set{Key: frontend})
	p.Sets.Set(n.clusterIPs, Set{Key: []Type{addr}})
	p.Sets.Set(n.localPods, Set{Key: []Type{addr}})
	p.Sets.Set(n.hairpin, Set{Key: []Type{addr, addr}})
}

// defaultAffinity is for entries without a timeout of their own; the rules
// always give one.
const defaultAffinity = 3 * time.Hour

// balanceChain identifies the chain that balances over a list of one length.
// It is there while some front end has such a list.
type balanceChain struct {
	is4, local bool
	list
}

type chainUse struct {
	uses    int
	verdict string
}

func (s *servicePlanner) holdChain(c balanceChain) {
	if c.n == 0 {
		return
	}
	use := s.chains[c]
	if use == nil {
		use = &chainUse{verdict: string(Goto(c.name()))}
		s.chains[c] = use
		s.plan.Chains.Set(c.name(), c.chain())
		s.planClearMark()
	}
	use.uses++
}

func (s *servicePlanner) planClearMark() {
	needed := false
	for c := range s.chains {
		needed = needed || c.affinity > 0
	}
	for _, hook := range clearMarkHooks {
		name := "clear-mark-" + hook
		if needed {
			s.plan.Chains.Set(name, Chain{Hook: hook, Type: "filter", Priority: priorityDNAT + 1, Rules: clearMarkRules()})
		} else {
			s.plan.Chains.Delete(name)
		}
	}
}

func clearMarkRules() (rules []Rule) {
	for _, f := range families {
		affine, origDst := serviceNames4.affine, OrigDstIP4
		if f.number == 6 {
			affine, origDst = serviceNames6.affine, OrigDstIP6
		}
		for _, protocol := range []uint8{service.TCP, service.UDP, service.SCTP} {
			rules = append(rules, R(CtState{"new"}, CtStatusDNAT{}, Proto(protocol),
				InSet{Fields: Concat{origDst, L4Proto, OrigDstPort}, Set: affine}, ClearMark{}))
		}
	}
	return rules
}

func (s *servicePlanner) releaseChain(c balanceChain) {
	if c.n == 0 {
		return
	}
	use := s.chains[c]
	if use.uses--; use.uses == 0 {
		delete(s.chains, c)
		s.plan.Chains.Delete(c.name())
		s.planClearMark()
	}
}

func (c balanceChain) name() string {
	name, suffix := "lb", "4"
	if c.local {
		name = "lb-local"
	}
	if !c.is4 {
		suffix = "6"
	}
	name = fmt.Sprintf("%s%s-%d", name, suffix, c.n)
	if c.affinity > 0 {
		name += fmt.Sprintf("-%ds", int(c.affinity.Seconds()))
	}
	return name
}

func (c balanceChain) chain() Chain {
	f, names := families[0], serviceNames4
	if !c.is4 {
		f, names = families[1], serviceNames6
	}
	l := names.all
	if c.local {
		l = names.local
	}
	frontend := Concat{f.dst, L4Proto, DstPort}
	with := func(last Field) Concat { return append(frontend[:3:3], last) }
	random := with(RandomMod(c.n))
	if c.affinity == 0 {
		return Chain{Rules: []Rule{R(DNAT{f.number, random, l.backends})}}
	}
	client := with(f.src)
	draw := R(SetMark{random, l.slots})
	remember := R(UpdateMap{client, names.affinity, c.affinity})
	translate := R(DNAT{f.number, with(PacketMark), l.backends})
	return Chain{Rules: []Rule{
		draw.WithComment("the backend, if the client has none yet"),
		R(SetMark{client, names.affinity}),
		remember, translate,
		// Here the backend that was remembered is no longer in the list. An
		// update would leave the entry's data as it is.
		R(DeleteFromMap{client, names.affinity}).WithComment("the backend is gone: choose again"),
		draw, remember, translate,
	}}
}
