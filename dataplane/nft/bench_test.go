package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

const many = 100_000

// bigPlan has n members in a set, half of them in a verdict map, too.
func bigPlan(n int) *plan.Plan {
	p := plan.New()
	p.Sets.Set("members", plan.Set{Key: []plan.Type{plan.IPv4Addr}})
	p.Sets.Set("services", plan.Set{Key: []plan.Type{plan.IPv4Addr, plan.InetProto, plan.InetService}, Value: []plan.Type{plan.VerdictType}})
	p.Chains.Set("balance", plan.Chain{Rules: []plan.Rule{plan.R(plan.Accept)}})
	p.Chains.Set("forward", plan.Chain{Hook: "forward", Type: "filter", Rules: []plan.Rule{
		plan.R(plan.InSet{Fields: plan.Concat{plan.SrcIP4}, Set: "members"}, plan.Accept),
		plan.R(plan.Dispatch{Fields: plan.Concat{plan.DstIP4, plan.L4Proto, plan.DstPort}, Map: "services"}),
	}})
	for i := range n / 2 {
		addMember(p, i)
		p.Elements.Set(plan.ElementKey{Set: "services", Key: plan.KeyOf(nth(i), uint8(6), uint16(80))}, plan.Element{Verdict: "goto balance"})
	}
	return p
}

func addMember(p *plan.Plan, i int) {
	p.Elements.Set(plan.ElementKey{Set: "members", Key: plan.KeyOf(nth(i))}, plan.Element{})
}

func nth(i int) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24+uint32(i))))
}

func BenchmarkCold100000Elements(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		k, p := open(b, testnet.New(b)), bigPlan(many)
		b.StartTimer()
		apply(b, k, p)
	}
}

func BenchmarkRestartWith100000Elements(b *testing.B) {
	k, p := open(b, testnet.New(b)), bigPlan(many)
	apply(b, k, p)
	for b.Loop() {
		k.Resync()
		if n := apply(b, k, p); n != 0 {
			b.Fatalf("wrote %d objects", n)
		}
	}
}

func BenchmarkOneElementOf100000(b *testing.B) {
	k, p := open(b, testnet.New(b)), bigPlan(many)
	apply(b, k, p)
	for i := 0; b.Loop(); i++ {
		addMember(p, many+i)
		apply(b, k, p)
	}
}

func BenchmarkOneVerdictOf100000(b *testing.B) {
	k, p := open(b, testnet.New(b)), bigPlan(many)
	apply(b, k, p)
	for i := 0; b.Loop(); i++ {
		verdict := []string{"accept", "goto balance"}[i%2]
		p.Elements.Set(plan.ElementKey{Set: "services", Key: plan.KeyOf(nth(7), uint8(6), uint16(80))}, plan.Element{Verdict: verdict})
		apply(b, k, p)
	}
}

// One chain is written for each of these: beside few elements and beside many,
// since the kernel looks for loops through every verdict map that a rule uses.
func BenchmarkOneChain(b *testing.B) {
	for _, n := range []int{100, many} {
		b.Run(fmt.Sprintf("elements=%d", n), func(b *testing.B) {
			k, p := open(b, testnet.New(b)), bigPlan(n)
			apply(b, k, p)
			for i := 0; b.Loop(); i++ {
				p.Chains.Set("balance", plan.Chain{Rules: []plan.Rule{
					plan.R(plan.CtState{"new"}, plan.Accept),
					plan.R(plan.CtState{"invalid"}, plan.Drop),
					plan.R(plan.Counter{}, plan.Accept).WithComment(fmt.Sprint(i)),
				}})
				apply(b, k, p)
			}
		})
	}
}

func BenchmarkUnchanged(b *testing.B) {
	k, p := open(b, testnet.New(b)), bigPlan(many)
	apply(b, k, p)
	for b.Loop() {
		apply(b, k, p)
	}
}
