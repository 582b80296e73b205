package plan

import (
	"net/netip"

	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/service"
)

// The chains that choose the source address of translated connections.
const (
	// chainServicesMasquerade decides which connections get another source, so
	// that their replies come back through this node; from nat postrouting.
	chainServicesMasquerade = "services-masquerade"
	// chainServicesSource decides which source that is.
	chainServicesSource = "services-source"
	// chainNodeSource gives the node's own address.
	chainNodeSource = "node-source"
)

// sources are the node's own addresses by family, as its peers route to them.
type sources struct{ v4, v6 netip.Addr }

func (s *servicePlanner) setUnderlay(u fabric.Underlay) {
	var now sources
	now.v4, _ = u.Addr(false)
	now.v6, _ = u.Addr(true)
	if now != s.sources {
		s.sources = now
		planNodeSource(s.plan, now)
	}
}

// planServiceMasquerade asks for the chain of translated connections. If Services
// are off, only those to host ports are ours; their pods are on this node, so the
// replies pass it anyhow. The program that serves Services masquerades as it likes,
// but what it sends into the tunnel needs the node's address (see
// planServiceSource), and by ours coming first (see prioritySNAT) gets it.
func planServiceMasquerade(p *Plan, off bool) {
	rules := []Rule{R(InPrefix{Field: SrcIP4, Prefix: loopback4}, Goto(chainServicesSource)).WithComment("a pod can't answer to a loopback address")}
	for _, f := range families {
		n := serviceNamesFor(f.number)
		rules = append(rules, R(InSet{Fields: Concat{f.src, f.dst}, Set: n.hairpin}, Goto(chainServicesSource)).WithComment("a pod reaches itself"))
		if off {
			rules = append(rules, R(Interface{OutInterface, VXLANLink}, InSet{Fields: Concat{f.src}, Set: setPools + f.suffix, Not: true}, Goto(chainNodeSource)))
		} else {
			rules = append(rules, R(InSet{Fields: Concat{f.src}, Set: n.localPods}, Return))
		}
	}
	if !off {
		// Before the front ends: the endpoints that programs on this node get may be on
		// other nodes, whatever the traffic policy (see services-localN).
		rules = append(rules, R(LocalAddress{Source: true}, Goto(chainServicesSource)).WithComment("programs on this node"))
		rules = append(rules, unattachedRules()...)
		rules = append(rules, keepSourceRules()...)
		rules = append(rules, R(Goto(chainServicesSource)))
	}
	p.Chains.Set(chainServicesMasquerade, Chain{Rules: rules})
}

// unattachedRules leave pods alone that twill-cni has not attached (by a second
// network, or by hand), with addresses of the node's blocks: replies to these come to
// this node. Whether two such addresses are one pod is not known, and a pod can't
// reach itself by its own address.
func unattachedRules() (rules []Rule) {
	for _, f := range families {
		from := InSet{Fields: Concat{f.src}, Set: setOwnBlocks + f.suffix}
		rules = append(rules,
			R(from, InSet{Fields: Concat{f.dst}, Set: setOwnBlocks + f.suffix}, InSet{Fields: Concat{f.dst}, Set: serviceNamesFor(f.number).localPods, Not: true},
				Goto(chainServicesSource)).WithComment("perhaps a pod reaches itself"),
			R(from, Return).WithComment("pods that twill-cni has not attached"))
	}
	return rules
}

// keepSourceRules leave connections alone that come from outside the node to front
// ends whose endpoints are all on it.
func keepSourceRules() (rules []Rule) {
	for _, f := range families {
		n, origDst := serviceNamesFor(f.number), OrigDstIP4
		if f.number == 6 {
			origDst = OrigDstIP6
		}
		// nft can only print the original port where a rule says of which protocol.
		for _, protocol := range []uint8{service.TCP, service.UDP, service.SCTP} {
			rules = append(rules,
				R(Proto(protocol), InSet{Fields: Concat{origDst, L4Proto, OrigDstPort}, Set: n.keepSource}, Return),
				R(Proto(protocol), InSet{Fields: Concat{L4Proto, OrigDstPort, f.dst, DstPort}, Set: n.hostPortPods}, Return))
		}
	}
	return rules
}

// planServiceSource asks for the chain that chooses the source of connections whose
// replies must pass this node. Masquerade takes the first address of the outgoing
// device in the next hop's network; where the device has none, it takes that of any
// other device, in the order in which they were made (inet_select_addr,
// ipv6_dev_get_saddr), lo first. Pods' devices and tunnels have none, and peers
// route replies only to the node's own address. Outside the cluster network the
// outgoing device's address is the right one.
func planServiceSource(p *Plan) {
	rules := []Rule{
		R(Interface{OutInterface, VethPrefix + "*"}, Goto(chainNodeSource)).WithComment("local pods"),
		R(Interface{OutInterface, VXLANLink}, Goto(chainNodeSource)).WithComment("pods of other nodes, by a tunnel"),
	}
	for _, f := range families {
		for _, set := range []string{setPools, setNodes} {
			rules = append(rules, R(InSet{Fields: Concat{f.dst}, Set: set + f.suffix}, Goto(chainNodeSource)))
		}
	}
	p.Chains.Set(chainServicesSource, Chain{Rules: append(rules, R(Masquerade{}))})
	planNodeSource(p, sources{})
}

// planNodeSource asks for the chain that gives connections the node's address.
// Connections that have it keep their port if they can; that they are translated, too,
// keeps other programs' masquerade away. In a family in which the node's address is
// not known, the kernel chooses one.
func planNodeSource(p *Plan, from sources) {
	var rules []Rule
	for i, a := range []netip.Addr{from.v4, from.v6} {
		if a.IsValid() {
			rules = append(rules,
				R(InPrefix{Field: families[i].src, Prefix: netip.PrefixFrom(a, a.BitLen())}, SNAT{To: a}),
				R(SNAT{To: a, Random: true}))
		}
	}
	p.Chains.Set(chainNodeSource, Chain{Rules: append(rules, R(Masquerade{}))})
}
