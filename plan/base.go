package plan

import (
	"net/netip"

	"go4.org/netipx"
)

// Sets that the base chains use. Names end with the family.
const (
	setPools       = "pool-cidrs"   // every pool's range
	setNATOutgoing = "nat-outgoing" // the ranges of pools with natOutgoing
	setNodes       = "nodes"        // every node's addresses
	setOwnBlocks   = "own-blocks"   // the ranges of the node's own blocks
)

// Priorities of the kernel's own hooks (linux/netfilter_ipv4.h).
const (
	priorityRaw    = -300 // before connection tracking
	priorityDNAT   = -100
	priorityFilter = 0
	// prioritySNAT is one less than the kernel's. The first chain that translates a
	// connection's source decides; among those of one priority that is the chain
	// which was made first, so another program's masquerade would win by chance.
	prioritySNAT = 99
)

// families are the suffixes of per-family names and the fields of each.
var families = []struct {
	number   int
	suffix   string
	addr     Type
	src, dst Field
	// multicast is never masqueraded: receivers tell senders by address.
	multicast netip.Prefix
}{
	{4, "4", IPv4Addr, SrcIP4, DstIP4, netip.MustParsePrefix("224.0.0.0/4")},
	{6, "6", IPv6Addr, SrcIP6, DstIP6, netip.MustParsePrefix("ff00::/8")},
}

var loopback4 = netip.MustParsePrefix("127.0.0.0/8")

func suffix(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// planBase asks for what every node has: the hooks, which hand over to the
// chains of services and policy, and the masquerade of what leaves the cluster.
func planBase(p *Plan) {
	p.Sysctls.Set("net/ipv4/ip_forward", "1")

	// Translation sees only the first packet of a connection.
	p.Chains.Set("prerouting-nat", Chain{Hook: "prerouting", Type: "nat", Priority: priorityDNAT, Rules: []Rule{
		// Routing would drop these, once the destination is not translated.
		R(InPrefix{Field: DstIP4, Prefix: loopback4}, Return).WithComment("only programs on the node reach its loopback"),
		R(Jump("services")),
	}})
	p.Chains.Set("output-nat", Chain{Hook: "output", Type: "nat", Priority: priorityDNAT,
		Rules: []Rule{R(Jump("services"))}})

	forward := []Rule{
		R(CtState{"established", "related"}, Accept),
		R(Jump("services-reject")),
		spoofed,
	}
	for _, f := range families {
		forward = append(forward, R(InSet{Fields: Concat{f.src, f.dst}, Set: "hairpin" + f.suffix}, Accept).
			WithComment("no policy keeps a pod from itself"))
	}
	forward = append(append(forward, egressRules()...), R(Jump(chainToPods)))
	p.Chains.Set("forward", Chain{Hook: "forward", Type: "filter", Priority: priorityFilter, Rules: forward})
	planNodeChains(p, nil, false)

	postrouting := []Rule{R(CtStatusDNAT{}, Jump("services-masquerade"))}
	for _, f := range families {
		for _, name := range []string{setPools, setNATOutgoing, setOwnBlocks} {
			p.Sets.Set(name+f.suffix, Set{Key: []Type{f.addr}, Interval: true})
		}
		p.Sets.Set(setNodes+f.suffix, Set{Key: []Type{f.addr}})
		postrouting = append(postrouting, R(
			InSet{Fields: Concat{f.src}, Set: setNATOutgoing + f.suffix},
			InSet{Fields: Concat{f.dst}, Set: setPools + f.suffix, Not: true},
			InSet{Fields: Concat{f.dst}, Set: setNodes + f.suffix, Not: true},
			InPrefix{Field: f.dst, Prefix: f.multicast, Not: true},
			Masquerade{},
		).WithComment("natOutgoing: pods that leave the cluster"))
	}
	p.Chains.Set("postrouting", Chain{Hook: "postrouting", Type: "nat", Priority: prioritySNAT, Rules: postrouting})
}

var (
	fromPod = Interface{InInterface, VethPrefix + "*"}
	// A pod's policy decides by addresses, so a pod must not borrow another's.
	spoofed = R(fromPod, SpoofedSource{}, Counter{}, Drop).WithComment("source is not the pod's own address")
)

// planNodeChains asks for the chains of what comes to the node itself or from
// it. tunnels are the ports on which it receives tunnels: they are compared with
// and not looked up, which each packet of a tunnel would pay for. open: egress
// policy does not hold for the pod's own node.
func planNodeChains(p *Plan, tunnels []uint16, open bool) {
	input := []Rule{R(CtState{"established", "related"}, Accept)}
	output := []Rule{R(CtState{"established", "related"}, Accept)}
	for _, port := range tunnels {
		for _, f := range families {
			input = append(input, R(Family(f.number), Proto(udp), ToPort(port), InSet{Fields: Concat{f.src}, Set: setNodes + f.suffix}, Accept).
				WithComment("tunnels of nodes"))
		}
		// What is not a node's would bring in packets under any source address
		// that it likes.
		input = append(input, R(Proto(udp), ToPort(port), Counter{}, Drop).WithComment("only nodes may use the tunnel"))
		output = append(output, R(Proto(udp), ToPort(port), Accept))
	}
	input = append(input,
		R(Jump("services-reject")),
		R(fromPod, NeighbourDiscovery{}, Accept),
		spoofed,
		R(fromPod, InPrefix{Field: DstIP4, Prefix: loopback4}, Counter{}, Drop).WithComment("the node's loopback is its own"),
	)
	if !open {
		input = append(input, egressRules()...)
	}
	p.Chains.Set("input", Chain{Hook: "input", Type: "filter", Priority: priorityFilter, Rules: input})
	// No policy in output: a node reaches its own pods, for probes.
	p.Chains.Set("output", Chain{Hook: "output", Type: "filter", Priority: priorityFilter,
		Rules: append(output, R(Jump("services-reject")))})
}

// planUntracked asks for the chains that keep connection tracking from the outer
// packets of tunnels to these ports. The two directions of a flow have source
// ports of their own (RFC 7348 §5), so to conntrack each is a connection that
// nobody ever answers; the inner packets are tracked all the same. Each other
// packet pays for the chains: without ports there are none.
func planUntracked(p *Plan, tunnels []uint16) {
	in := Chain{Hook: "prerouting", Type: "filter", Priority: priorityRaw}
	out := Chain{Hook: "output", Type: "filter", Priority: priorityRaw}
	for _, port := range tunnels {
		for _, f := range families {
			to := []Statement{Family(f.number), Proto(udp), ToPort(port)}
			in.Rules = append(in.Rules, R(append(to[:3:3], InSet{Fields: Concat{f.src}, Set: setNodes + f.suffix}, NoTrack{})...))
			out.Rules = append(out.Rules, R(append(to[:3:3], InSet{Fields: Concat{f.dst}, Set: setNodes + f.suffix}, NoTrack{})...))
		}
	}
	setOrDelete(p.Chains, "untracked-in", in, len(tunnels) > 0)
	setOrDelete(p.Chains, "untracked-out", out, len(tunnels) > 0)
}

// rangeElements are the elements of the per-family interval set for the union
// of the prefixes; overlapping prefixes are merged, as intervals must not
// overlap.
func rangeElements(set string, prefixes []netip.Prefix) map[ElementKey]Element {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	out := map[ElementKey]Element{}
	ipset, err := b.IPSet()
	if err != nil {
		return out // only invalid prefixes make an error, and there are none
	}
	for _, r := range ipset.Ranges() {
		out[ElementKey{set + suffix(r.From()), KeyOf(r.From())}] = Element{End: KeyOf(r.To())}
	}
	return out
}
