package nft

import (
	"net/netip"
	"slices"
	"time"

	"github.com/twill-net/twill/plan"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// everything is a plan with every type of set and every statement.
func everything() *plan.Plan {
	p := plan.New()
	frontend := []plan.Type{plan.IPv4Addr, plan.InetProto, plan.InetService}
	frontend6 := []plan.Type{plan.IPv6Addr, plan.InetProto, plan.InetService}
	with := func(types []plan.Type, more ...plan.Type) []plan.Type { return append(slices.Clone(types), more...) }
	for name, s := range map[string]plan.Set{
		"members":   {Key: []plan.Type{plan.IPv4Addr}, Comment: "pods that may"},
		"members6":  {Key: []plan.Type{plan.IPv6Addr}},
		"nets":      {Key: []plan.Type{plan.IPv4Addr}, Interval: true},
		"nets6":     {Key: []plan.Type{plan.IPv6Addr}, Interval: true},
		"port":      {Key: []plan.Type{plan.InetService}, Interval: true},
		"named":     {Key: frontend},
		"class":     {Key: []plan.Type{plan.InetProto, plan.InetService}, Value: []plan.Type{plan.VerdictType}, Interval: true},
		"to-pod":    {Key: []plan.Type{plan.IfName}, Value: []plan.Type{plan.VerdictType}},
		"proto":     {Key: []plan.Type{plan.InetProto}, Value: []plan.Type{plan.VerdictType}},
		"endpoint":  {Key: with(frontend, plan.Mark), Value: []plan.Type{plan.IPv4Addr, plan.InetService}},
		"endpoint6": {Key: with(frontend6, plan.Mark), Value: []plan.Type{plan.IPv6Addr, plan.InetService}},
		"slot":      {Key: []plan.Type{plan.Mark}, Value: []plan.Type{plan.Mark}},
		"target":    {Key: []plan.Type{plan.Mark}, Value: []plan.Type{plan.InetService}},
		"affinity": {Key: with(frontend, plan.IPv4Addr), Value: []plan.Type{plan.Mark},
			Dynamic: true, Timeout: 3 * time.Hour},
		"marks": {Key: []plan.Type{plan.IPv4Addr, plan.InetProto, plan.InetService, plan.IPv4Addr, plan.InetService}, Value: []plan.Type{plan.Mark},
			Dynamic: true, Timeout: time.Second},
		"affinity6": {Key: with(frontend6, plan.IPv6Addr), Value: []plan.Type{plan.Mark}, Dynamic: true},
	} {
		p.Sets.Set(name, s)
	}
	element := func(set, key string, e plan.Element) { p.Elements.Set(plan.ElementKey{Set: set, Key: key}, e) }
	element("members", plan.KeyOf(addr("10.244.1.2")), plan.Element{Comment: "default/web"})
	element("members6", plan.KeyOf(addr("fd00::2")), plan.Element{})
	for from, to := range map[string]string{
		"0.0.0.0": "0.0.0.255", "10.0.0.0": "10.0.0.255", "10.0.1.0": "10.0.1.7", "10.0.1.9": "10.0.1.9", "255.0.0.0": "255.255.255.255",
	} {
		element("nets", plan.KeyOf(addr(from)), plan.Element{End: plan.KeyOf(addr(to)), Comment: "net " + from})
	}
	element("nets6", plan.KeyOf(addr("fd00::")), plan.Element{End: plan.KeyOf(addr("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))})
	element("port", plan.KeyOf(uint16(80)), plan.Element{End: plan.KeyOf(uint16(89))})
	element("port", plan.KeyOf(uint16(60000)), plan.Element{End: plan.KeyOf(uint16(65535))})
	element("named", plan.KeyOf(addr("10.244.1.3"), uint8(6), uint16(8080)), plan.Element{})
	element("class", plan.KeyOf(uint8(6), uint16(80)), plan.Element{End: plan.KeyOf(uint8(6), uint16(89)), Verdict: "goto leaf"})
	element("class", plan.KeyOf(uint8(17), uint16(53)), plan.Element{End: plan.KeyOf(uint8(17), uint16(53)), Verdict: "accept"})
	element("to-pod", plan.KeyOf("tw-123"), plan.Element{Verdict: "goto leaf", Comment: "default/web"})
	element("to-pod", plan.KeyOf("tw-456"), plan.Element{Verdict: "jump leaf"})
	element("proto", plan.KeyOf(uint8(132)), plan.Element{Verdict: "drop"})
	element("proto", plan.KeyOf(uint8(1)), plan.Element{Verdict: "return"})
	element("endpoint", plan.KeyOf(addr("10.1.0.1"), uint8(6), uint16(80), uint32(0)),
		plan.Element{Value: plan.KeyOf(addr("10.244.1.2"), uint16(8080)), Comment: "web"})
	element("endpoint6", plan.KeyOf(addr("fd01::1"), uint8(17), uint16(53), uint32(1)),
		plan.Element{Value: plan.KeyOf(addr("fd00::2"), uint16(5353))})
	element("slot", plan.KeyOf(uint32(7)), plan.Element{Value: plan.KeyOf(uint32(9))})
	element("target", plan.KeyOf(uint32(7)), plan.Element{Value: plan.KeyOf(uint16(443))})

	key := plan.Concat{plan.DstIP4, plan.L4Proto, plan.DstPort}
	key6 := plan.Concat{plan.DstIP6, plan.L4Proto, plan.DstPort}
	and := func(c plan.Concat, more ...plan.Field) plan.Concat { return append(slices.Clone(c), more...) }
	p.Chains.Set("leaf", plan.Chain{Rules: []plan.Rule{plan.R(plan.Return)}})
	p.Chains.Set("empty", plan.Chain{})
	p.Chains.Set("statements", plan.Chain{Rules: []plan.Rule{
		plan.R(plan.CtState{"established", "related"}, plan.Accept).WithComment("known connections"),
		plan.R(plan.CtState{"invalid"}, plan.Drop),
		plan.R(plan.CtState{"new"}, plan.CtStatusDNAT{}, plan.Counter{}, plan.Accept),
		plan.R(plan.InSet{Fields: plan.Concat{plan.SrcIP4}, Set: "members"}, plan.Accept),
		plan.R(plan.InSet{Fields: plan.Concat{plan.SrcIP4}, Set: "nets", Not: true}, plan.Return),
		plan.R(plan.InSet{Fields: plan.Concat{plan.SrcIP6}, Set: "members6"}, plan.Accept),
		plan.R(plan.InSet{Fields: plan.Concat{plan.DstIP6}, Set: "nets6", Not: true}, plan.Accept),
		plan.R(plan.Proto(6), plan.InSet{Fields: plan.Concat{plan.DstPort}, Set: "port"}, plan.Accept),
		plan.R(plan.InSet{Fields: key, Set: "named"}, plan.Accept),
		plan.R(plan.Dispatch{Fields: plan.Concat{plan.L4Proto, plan.DstPort}, Map: "class"}),
		plan.R(plan.Dispatch{Fields: plan.Concat{plan.OutInterface}, Map: "to-pod"}),
		plan.R(plan.Dispatch{Fields: plan.Concat{plan.L4Proto}, Map: "proto"}),
		plan.R(plan.Interface{Field: plan.InInterface, Name: "tw-*"}, plan.Interface{Field: plan.OutInterface, Name: "eth0"}, plan.Drop),
		plan.R(plan.Family(4), plan.Proto(47), plan.Drop),
		plan.R(plan.Family(6), plan.Return),
		plan.R(plan.Family(4), plan.Proto(17), plan.ToPort(8472), plan.InSet{Fields: plan.Concat{plan.SrcIP4}, Set: "members"}, plan.Accept),
		plan.R(plan.LocalAddress{}, plan.Accept),
		plan.R(plan.LocalAddress{Source: true}, plan.Accept),
		plan.R(plan.SpoofedSource{}, plan.Drop),
		plan.R(plan.NeighbourDiscovery{}, plan.Accept),
		plan.R(plan.InPrefix{Field: plan.SrcIP4, Prefix: netip.MustParsePrefix("10.0.0.0/12")}, plan.Accept),
		plan.R(plan.InPrefix{Field: plan.DstIP4, Prefix: netip.MustParsePrefix("10.0.0.0/8"), Not: true}, plan.Accept),
		plan.R(plan.InPrefix{Field: plan.DstIP4, Prefix: netip.MustParsePrefix("10.0.0.1/32")}, plan.Accept),
		plan.R(plan.InPrefix{Field: plan.SrcIP6, Prefix: netip.MustParsePrefix("fd00::/9")}, plan.Accept),
		plan.R(plan.InPrefix{Field: plan.OrigDstIP4, Prefix: netip.MustParsePrefix("10.1.0.0/16")}, plan.Accept),
		plan.R(plan.InPrefix{Field: plan.OrigDstIP6, Prefix: netip.MustParsePrefix("fd01::/64")}, plan.Accept),
		plan.R(plan.InSet{Fields: plan.Concat{plan.OrigDstIP4, plan.L4Proto, plan.OrigDstPort}, Set: "named"}, plan.Accept),
		plan.R(plan.SetMark{Fields: plan.Concat{plan.RandomMod(3)}, Map: "slot"}),
		plan.R(plan.SetMark{Fields: plan.Concat{plan.PacketMark}, Map: "slot"}),
		plan.R(plan.Proto(6), plan.UpdateMap{Fields: plan.Concat{plan.SrcIP4, plan.L4Proto, plan.SrcPort, plan.OrigDstIP4, plan.OrigDstPort}, Map: "marks", Timeout: time.Second}),
		plan.R(plan.Proto(17), plan.SetMark{Fields: plan.Concat{plan.SrcIP4, plan.L4Proto, plan.SrcPort, plan.OrigDstIP4, plan.OrigDstPort}, Map: "marks"}),
		plan.R(plan.SetMark{Fields: and(key, plan.SrcIP4), Map: "affinity"}),
		plan.R(plan.UpdateMap{Fields: and(key, plan.SrcIP4), Map: "affinity", Timeout: 90 * time.Second}),
		plan.R(plan.DeleteFromMap{Fields: and(key, plan.SrcIP4), Map: "affinity"}),
		plan.R(plan.SetMark{Fields: and(key6, plan.SrcIP6), Map: "affinity6"}),
		plan.R(plan.UpdateMap{Fields: and(key6, plan.SrcIP6), Map: "affinity6", Timeout: time.Minute}),
		plan.R(plan.Verdict("jump leaf")),
		plan.R(plan.Goto("empty")),
	}})
	p.Chains.Set("forward", plan.Chain{Hook: "forward", Type: "filter", Rules: []plan.Rule{
		plan.R(plan.Jump("statements")),
		plan.R(plan.InSet{Fields: plan.Concat{plan.DstIP4}, Set: "members"}, plan.Counter{}, plan.Reject{}).WithComment("no endpoints"),
		plan.R(plan.Proto(6), plan.Reject{}),
		plan.R(plan.Proto(17), plan.Reject{}),
		plan.R(plan.InSet{Fields: key, Set: "named"}, plan.Reject{}),
	}})
	p.Chains.Set("services", plan.Chain{Hook: "prerouting", Type: "nat", Priority: -100, Rules: []plan.Rule{
		plan.R(plan.DNAT{Family: 4, Fields: and(key, plan.RandomMod(2)), Map: "endpoint"}),
		plan.R(plan.DNAT{Family: 4, Fields: and(key, plan.PacketMark), Map: "endpoint"}),
		plan.R(plan.DNAT{Family: 6, Fields: and(key6, plan.RandomMod(2)), Map: "endpoint6"}),
	}})
	p.Chains.Set("reroute", plan.Chain{Hook: "output", Type: "route", Priority: -150})
	p.Chains.Set("untracked", plan.Chain{Hook: "output", Type: "filter", Priority: -300, Rules: []plan.Rule{
		plan.R(plan.Proto(17), plan.ToPort(8472), plan.NoTrack{}),
	}})
	p.Chains.Set("masquerade", plan.Chain{Hook: "postrouting", Type: "nat", Priority: 100, Rules: []plan.Rule{
		plan.R(plan.InPrefix{Field: plan.DstIP4, Prefix: netip.MustParsePrefix("224.0.0.0/4"), Not: true}, plan.Masquerade{}),
		plan.R(plan.SNAT{To: addr("192.0.2.1"), Random: true}),
		plan.R(plan.InSet{Fields: plan.Concat{plan.SrcIP6}, Set: "members6"}, plan.SNAT{To: addr("2001:db8::1")}),
	}})
	return p
}

// printed are lines of what nft 1.0.6 prints for everything, in any order.
const printed = `
type ipv4_addr . inet_proto . inet_service . ipv4_addr : mark
size 65535
flags dynamic,timeout
timeout 3h
comment "pods that may"
return
ct state established,related accept comment "known connections"
ct state invalid drop
ct state new ct status dnat counter packets 0 bytes 0 accept
ip saddr @members accept
ip saddr != @nets return
ip6 saddr @members6 accept
ip6 daddr != @nets6 accept
tcp dport @port accept
ip daddr . meta l4proto . th dport @named accept
meta l4proto . th dport vmap @class
oifname vmap @to-pod
meta l4proto vmap @proto
iifname "tw-*" oifname "eth0" drop
meta nfproto ipv4 meta l4proto gre drop
meta nfproto ipv6 return
udp dport 8472 ip saddr @members accept
fib daddr type local accept
fib saddr type local accept
fib saddr . iif oif missing drop
ip saddr 10.0.0.0/12 accept
ip daddr != 10.0.0.0/8 accept
ip daddr 10.0.0.1 accept
ip6 saddr fd00::/9 accept
ct original ip daddr 10.1.0.0/16 accept
ct original ip6 daddr fd01::/64 accept
ct original ip daddr . meta l4proto . ct original proto-dst @named accept
meta mark set numgen random mod 3 map @slot
meta mark set meta mark map @slot
update @marks { ip saddr . meta l4proto . tcp sport . ct original ip daddr . ct original proto-dst timeout 1s : meta mark }
meta mark set ip saddr . meta l4proto . udp sport . ct original ip daddr . ct original proto-dst map @marks
type route hook output priority mangle; policy accept;
meta mark set ip daddr . meta l4proto . th dport . ip saddr map @affinity
update @affinity { ip daddr . meta l4proto . th dport . ip saddr timeout 1m30s : meta mark }
delete @affinity { ip daddr . meta l4proto . th dport . ip saddr : meta mark }
meta mark set ip6 daddr . meta l4proto . th dport . ip6 saddr map @affinity6
jump leaf
goto empty
type filter hook forward priority filter; policy accept;
meta l4proto tcp ip daddr @members counter packets 0 bytes 0 reject with tcp reset comment "no endpoints"
ip daddr @members counter packets 0 bytes 0 reject comment "no endpoints"
meta l4proto tcp reject with tcp reset
meta l4proto udp reject
type nat hook prerouting priority dstnat; policy accept;
dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoint
dnat ip to ip daddr . meta l4proto . th dport . meta mark map @endpoint
dnat ip6 to ip6 daddr . meta l4proto . th dport . numgen random mod 2 map @endpoint6
type filter hook output priority raw; policy accept;
udp dport 8472 notrack
type nat hook postrouting priority srcnat; policy accept;
ip daddr != 224.0.0.0/4 masquerade fully-random
meta nfproto ipv4 snat ip to 192.0.2.1 fully-random
ip6 saddr @members6 snat ip6 to 2001:db8::1
`

// printedElements are parts of it, in any order.
var printedElements = []string{
	"tcp . 80-89 : goto leaf",
	"udp . 53 : accept",
	`10.1.0.1 . tcp . 80 . 0x00000000 comment "web" : 10.244.1.2 . 8080`,
	"fd01::1 . udp . 53 . 0x00000001 : fd00::2 . 5353",
	`10.244.1.2 comment "default/web"`,
	`0.0.0.0/24 comment "net 0.0.0.0"`,
	`10.0.0.0/24 comment "net 10.0.0.0"`,
	`10.0.1.0/29 comment "net 10.0.1.0"`,
	`10.0.1.9 comment "net 10.0.1.9"`,
	`255.0.0.0/8 comment "net 255.0.0.0"`,
	"fd00::/8",
	"80-89", "60000-65535",
	"icmp : return", "sctp : drop",
	"0x00000007 : 0x00000009",
	"0x00000007 : 443",
	`"tw-123" comment "default/web" : goto leaf`,
	`"tw-456" : jump leaf`,
}
