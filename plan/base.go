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
	setTunnelPorts = "tunnel-ports" // protocol and port on which this node receives tunnels
)

// Priorities of the kernel's own hooks (linux/netfilter_ipv4.h).
const (
	priorityDNAT   = -100
	priorityFilter = 0
	prioritySNAT   = 100
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

	fromPod := Interface{InInterface, VethPrefix + "*"}
	// Translation sees only the first packet of a connection.
	p.Chains.Set("prerouting-nat", Chain{Hook: "prerouting", Type: "nat", Priority: priorityDNAT,
		Rules: []Rule{R(Jump("services"))}})
	p.Chains.Set("output-nat", Chain{Hook: "output", Type: "nat", Priority: priorityDNAT,
		Rules: []Rule{R(Jump("services"))}})

	// A pod's policy decides by addresses, so a pod must not borrow another's.
	spoofed := R(fromPod, SpoofedSource{}, Counter{}, Drop).WithComment("source is not the pod's own address")
	forward := []Rule{
		R(CtState{"established", "related"}, Accept),
		R(Jump("services-reject")),
		spoofed,
	}
	for _, f := range families {
		forward = append(forward, R(InSet{Fields: Concat{f.src, f.dst}, Set: "hairpin" + f.suffix}, Accept).
			WithComment("no policy keeps a pod from itself"))
	}
	p.Chains.Set("forward", Chain{Hook: "forward", Type: "filter", Priority: priorityFilter, Rules: append(forward,
		R(Dispatch{Concat{InInterface}, "from-pod"}).WithComment("egress policy of local pods"),
		R(Dispatch{Concat{OutInterface}, "to-pod"}).WithComment("ingress policy of local pods"),
	)})
	// A tunnel's outer packets are new for ever, since each flow's two directions
	// have ports of their own (RFC 7348 §5): they are dealt with before anything
	// that looks at new connections. What is not a node's would bring in packets
	// under any source address that it likes.
	tunnel := InSet{Fields: Concat{L4Proto, DstPort}, Set: setTunnelPorts}
	p.Sets.Set(setTunnelPorts, Set{Key: []Type{InetProto, InetService}})
	input := []Rule{R(CtState{"established", "related"}, Accept)}
	for _, f := range families {
		input = append(input, R(tunnel, InSet{Fields: Concat{f.src}, Set: setNodes + f.suffix}, Accept).WithComment("tunnels of nodes"))
	}
	p.Chains.Set("input", Chain{Hook: "input", Type: "filter", Priority: priorityFilter, Rules: append(input,
		R(tunnel, Counter{}, Drop).WithComment("only nodes may use the tunnel"),
		R(Jump("services-reject")),
		R(fromPod, NeighbourDiscovery{}, Accept),
		spoofed,
		R(Dispatch{Concat{InInterface}, "from-pod"}).WithComment("egress policy holds for the pod's own node too"),
	)})
	// No policy in output: a node reaches its own pods, for probes.
	p.Chains.Set("output", Chain{Hook: "output", Type: "filter", Priority: priorityFilter,
		Rules: []Rule{R(CtState{"established", "related"}, Accept), R(tunnel, Accept), R(Jump("services-reject"))}})

	postrouting := []Rule{R(CtStatusDNAT{}, Jump("services-masquerade"))}
	for _, f := range families {
		for _, name := range []string{setPools, setNATOutgoing} {
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
