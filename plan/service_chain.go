package plan

import "net/netip"

// The chains of services, which the base chains jump to.
const (
	// chainServices translates the destination; from nat prerouting and output.
	chainServices = "services"
	// chainServicesReject answers for front ends that nobody serves; from
	// filter input, forward and output.
	chainServicesReject = "services-reject"
	chainServicesRefuse = "services-refuse"
)

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

	keepSource string // front ends whose backends shall see the client's address
	clusterIPs string
	// serviceCIDRs are the ranges of cluster IPs without the host's own networks.
	serviceCIDRs string
	// Host ports on every local address: protocol . port → pod, and these with the pod.
	hostPorts, hostPortPods string

	localPods string // addresses of pods on this node
	hairpin   string // the same, as pairs of twice the same

	localVerdict, rangesVerdict, rangesRefuseVerdict string
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
		all:        listNames{"ep" + suffix, "ep-slots" + suffix},
		local:      listNames{"ep-local" + suffix, "ep-local-slots" + suffix},
		keepSource: "svc-keep-source" + suffix,
		clusterIPs: "cluster-ips" + suffix, serviceCIDRs: "service-cidrs" + suffix, hostPorts: "host-ports" + suffix, hostPortPods: "host-port-pods" + suffix, localPods: "local-pods" + suffix, hairpin: "hairpin" + suffix,
		localVerdict: string(Goto("services-local" + suffix)), rangesVerdict: string(Goto("services-ranges" + suffix)),
		rangesRefuseVerdict: string(Goto("services-ranges-refuse" + suffix)),
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
		p.Chains.Set("services-ranges-refuse"+f.suffix, Chain{Rules: []Rule{
			R(InSet{Fields: append(frontend[:3:3], f.src), Set: n.ranges}, Goto(chainServicesRefuse)),
			R(Drop).WithComment("not in the source ranges"),
		}})
		// Clients on this node count as having come from outside through the
		// load balancer, which would have chosen a node that has endpoints.
		p.Chains.Set("services-local"+f.suffix, Chain{Rules: []Rule{
			R(InSet{Fields: Concat{f.src}, Set: n.localPods}, Dispatch{frontend, n.inside}),
			R(InSet{Fields: Concat{f.src}, Set: setOwnBlocks + f.suffix}, Dispatch{frontend, n.inside}),
			R(LocalAddress{Source: true}, Dispatch{frontend, n.inside}),
			R(Dispatch{frontend, n.outside}).WithComment("external traffic policy Local"),
		}})

		isNew, unallocated := CtState{"new"}, InSet{Fields: Concat{f.dst}, Set: n.serviceCIDRs}
		reject = append(reject,
			R(isNew, Dispatch{frontend, n.none}),
			R(isNew, InSet{Fields: Concat{f.dst}, Set: n.clusterIPs}, Goto(chainServicesRefuse)).
				WithComment("a port that the service does not have"),
			R(isNew, unallocated, LocalAddress{}, Return),
			R(isNew, unallocated, InSet{Fields: Concat{f.dst}, Set: setNodes + f.suffix, Not: true},
				InSet{Fields: Concat{f.dst}, Set: setPools + f.suffix, Not: true}, Drop).
				WithComment("a cluster IP of no service"))
	}
	p.Chains.Set(chainServices, Chain{Rules: append(services, hostPortRules()...)})
	p.Chains.Set(chainServicesReject, Chain{Rules: reject})
	p.Chains.Set(chainServicesRefuse, Chain{Rules: []Rule{R(Reject{})}})
	planServiceMasquerade(p, false)
	planTranslate(p)
	planMarks(p)
	planServiceSource(p)
}

// hostPortRules serve host ports on every local address, also one that the node gets
// later, after the front ends that name an address. ::1 is left out: the kernel sends no
// packets with this source to another device (RFC 4291 §2.5.3).
func hostPortRules() (rules []Rule) {
	for _, f := range families {
		var to []Statement
		if f.number == 6 {
			to = append(to, InPrefix{Field: f.dst, Prefix: netip.PrefixFrom(netip.IPv6Loopback(), 128), Not: true})
		}
		to = append(to, LocalAddress{}, DNAT{f.number, Concat{L4Proto, DstPort}, serviceNamesFor(f.number).hostPorts})
		rules = append(rules, R(to...).WithComment("host ports"))
	}
	return rules
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
	p.Sets.Set(n.keepSource, Set{Key: frontend})
	p.Sets.Set(n.clusterIPs, Set{Key: []Type{addr}})
	p.Sets.Set(n.hostPorts, Set{Key: []Type{InetProto, InetService}, Value: []Type{addr, InetService}})
	p.Sets.Set(n.hostPortPods, Set{Key: []Type{InetProto, InetService, addr, InetService}})
	p.Sets.Set(n.serviceCIDRs, Set{Key: []Type{addr}, Interval: true})
	p.Sets.Set(n.localPods, Set{Key: []Type{addr}})
	p.Sets.Set(n.hairpin, Set{Key: []Type{addr, addr}})
}
