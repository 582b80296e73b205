package nft

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

// transactionsIn returns the transactions that f makes, each with what it does,
// such as "add rules of forward".
func transactionsIn(t *testing.T, ns *testnet.NS, f func()) (out []string) {
	t.Helper()
	var s *socket
	ns.Do(func() {
		var err error
		if s, err = openSocket(); err != nil {
			t.Fatal(err)
		}
	})
	defer s.close()
	if err := s.subscribe(0); err != nil {
		t.Fatal(err)
	}
	f()
	var does []string
	for {
		messages, err := s.receive()
		if errors.Is(err, unix.EAGAIN) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
				out = append(out, strings.Join(does, ", "))
				does = nil
				continue
			}
			if what := described(m); !slices.Contains(does, what) {
				does = append(does, what)
			}
		}
	}
}

// described says what a notification is about.
func described(m netlinkMessage) string {
	a := attributes(m.Data[nfgenHeader:])
	for _, kind := range []struct {
		add, remove uint16
		what        string
		name        uint16
	}{
		{unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, "table", unix.NFTA_TABLE_NAME},
		{unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, "chain", unix.NFTA_CHAIN_NAME},
		{unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, "rules of", unix.NFTA_RULE_CHAIN},
		{unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET, "set", unix.NFTA_SET_NAME},
		{unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM, "elements of", unix.NFTA_SET_ELEM_LIST_SET},
	} {
		switch m.Header.Type & 0xff {
		case kind.add:
			return fmt.Sprintf("add %s %s", kind.what, a.get(kind.name).asText())
		case kind.remove:
			return fmt.Sprintf("remove %s %s", kind.what, a.get(kind.name).asText())
		}
	}
	return fmt.Sprintf("message %d", m.Header.Type&0xff)
}

// TestMakeBeforeBreak: packets that are on their way during a change are why it
// takes several transactions, see stage.
func TestMakeBeforeBreak(t *testing.T) {
	pod := plan.ElementKey{Set: "to-pod", Key: plan.KeyOf("tw-1")}
	isolated := plan.ElementKey{Set: "isolated", Key: plan.KeyOf("tw-1")}
	member := func(n int) plan.ElementKey { return plan.ElementKey{Set: "members", Key: plan.KeyOf(nth(n))} }
	net := func(from int) plan.ElementKey { return plan.ElementKey{Set: "nets", Key: plan.KeyOf(nth(from))} }
	in := func(set string) plan.Rule {
		return plan.R(plan.InSet{Fields: plan.Concat{plan.SrcIP4}, Set: set}, plan.Accept)
	}
	chain := func(rules ...plan.Rule) plan.Chain { return plan.Chain{Rules: append(rules, plan.R(plan.Drop))} }
	base := func(p *plan.Plan) {
		p.Sets.Set("to-pod", plan.Set{Key: []plan.Type{plan.IfName}, Value: []plan.Type{plan.VerdictType}})
		p.Sets.Set("isolated", plan.Set{Key: []plan.Type{plan.IfName}, Role: plan.Guards})
		p.Sets.Set("members", plan.Set{Key: []plan.Type{plan.IPv4Addr}, Role: plan.Permits})
		p.Sets.Set("nets", plan.Set{Key: []plan.Type{plan.IPv4Addr}, Interval: true, Role: plan.Permits})
		p.Chains.Set("forward", plan.Chain{Hook: "forward", Type: "filter", Rules: []plan.Rule{
			plan.R(plan.Dispatch{Fields: plan.Concat{plan.OutInterface}, Map: "to-pod"}),
			plan.R(plan.InSet{Fields: plan.Concat{plan.OutInterface}, Set: "isolated"}, plan.Drop),
		}})
		p.Chains.Set("a", chain(in("members"), in("nets")))
		p.Elements.Set(member(1), plan.Element{})
		p.Elements.Set(net(0), plan.Element{End: plan.KeyOf(nth(9))})
	}
	dispatched := func(p *plan.Plan) {
		p.Elements.Set(pod, plan.Element{Verdict: "jump a"})
		p.Elements.Set(isolated, plan.Element{})
	}
	for _, test := range []struct {
		name            string
		prepare, change func(p *plan.Plan)
		want            []string
	}{
		{"a verdict map leads to a chain that is there", func(*plan.Plan) {}, dispatched,
			[]string{"add elements of to-pod", "add elements of isolated"}},
		{"a verdict map leads to a new chain", dispatched, func(p *plan.Plan) {
			p.Sets.Set("peers", plan.Set{Key: []plan.Type{plan.IPv4Addr}, Role: plan.Permits})
			p.Elements.Set(plan.ElementKey{Set: "peers", Key: plan.KeyOf(nth(1))}, plan.Element{})
			p.Chains.Set("b", chain(in("peers")))
			p.Elements.Set(pod, plan.Element{Verdict: "jump b"})
		}, []string{"add set peers, add elements of peers, add chain b, add rules of b",
			"remove elements of to-pod, add elements of to-pod"}},
		{"a verdict map leads elsewhere, and the chain goes", dispatched, func(p *plan.Plan) {
			p.Chains.Delete("a")
			p.Sets.Delete("nets")
			p.Elements.Delete(net(0))
			p.Elements.Delete(member(1))
			p.Elements.Delete(pod)
			p.Elements.Delete(isolated)
		}, []string{"remove elements of isolated, remove elements of to-pod",
			"remove elements of members, remove rules of a, remove set nets, remove chain a"}},
		{"a chain's rules lead to a new map of ranges", dispatched, func(p *plan.Plan) {
			p.Sets.Set("ports", plan.Set{Key: []plan.Type{plan.InetProto, plan.InetService}, Value: []plan.Type{plan.VerdictType}, Interval: true})
			p.Elements.Set(plan.ElementKey{Set: "ports", Key: plan.KeyOf(uint8(6), uint16(80))},
				plan.Element{End: plan.KeyOf(uint8(6), uint16(90)), Verdict: "goto class"})
			p.Chains.Set("class", chain(in("members")))
			p.Chains.Set("a", chain(plan.R(plan.Dispatch{Fields: plan.Concat{plan.L4Proto, plan.DstPort}, Map: "ports"})))
		}, []string{"add set ports, add chain class, add rules of class, add elements of ports",
			"remove rules of a, add rules of a"}},
		{"a chain's rules look up a new set", dispatched, func(p *plan.Plan) {
			p.Sets.Set("peers", plan.Set{Key: []plan.Type{plan.IPv4Addr}, Role: plan.Permits})
			p.Elements.Set(plan.ElementKey{Set: "peers", Key: plan.KeyOf(nth(1))}, plan.Element{})
			p.Chains.Set("a", chain(in("peers"), in("nets")))
			p.Elements.Delete(member(1))
			p.Sets.Delete("members")
		}, []string{"remove rules of a, add set peers, add elements of peers, add rules of a", "remove set members"}},
		{"members come and go, and no rule changes", dispatched, func(p *plan.Plan) {
			p.Elements.Delete(member(1))
			p.Elements.Set(member(2), plan.Element{})
		}, []string{"add elements of members", "remove elements of members"}},
		{"a set passes from one chain to another", dispatched, func(p *plan.Plan) {
			p.Chains.Set("a", chain(in("nets")))
			p.Chains.Set("b", chain(in("members")))
			p.Elements.Delete(member(1))
			p.Elements.Set(member(2), plan.Element{})
		}, []string{"remove elements of members", "remove rules of a, add chain b, add rules of b, add rules of a", "add elements of members"}},
		{"a set of ranges passes from one chain to another", dispatched, func(p *plan.Plan) {
			p.Chains.Set("a", chain(in("members")))
			p.Chains.Set("b", chain(in("nets")))
			p.Elements.Set(net(0), plan.Element{End: plan.KeyOf(nth(19))})
		}, []string{"remove elements of nets", "add chain b, add rules of b", "remove rules of a, add rules of a", "add elements of nets"}},
		{"ranges change, and no rule", dispatched, func(p *plan.Plan) {
			p.Elements.Set(net(0), plan.Element{End: plan.KeyOf(nth(4))})
			p.Elements.Set(net(6), plan.Element{End: plan.KeyOf(nth(9))})
		}, []string{"remove elements of nets, add elements of nets"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ns := testnet.New(t)
			k, p := open(t, ns), plan.New()
			base(p)
			test.prepare(p)
			apply(t, k, p)
			test.change(p)
			if diff := cmp.Diff(test.want, transactionsIn(t, ns, func() { apply(t, k, p) })); diff != "" {
				t.Errorf("transactions (-want +got):\n%s", diff)
			}
			settled(t, k, p)
			list(t, ns)
		})
	}
}
