package nft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

func TestOneChangeIsOneTransaction(t *testing.T) {
	member := plan.ElementKey{Set: "members", Key: plan.KeyOf(addr("10.244.1.2"))}
	pod := plan.ElementKey{Set: "to-pod", Key: plan.KeyOf("tw-123")}
	class := plan.ElementKey{Set: "class", Key: plan.KeyOf(uint8(6), uint16(80))}
	net := plan.ElementKey{Set: "nets", Key: plan.KeyOf(addr("10.0.0.0"))}
	endpoint := plan.ElementKey{Set: "endpoint", Key: plan.KeyOf(addr("10.1.0.1"), uint8(6), uint16(80), uint32(0))}
	for name, test := range map[string]struct {
		writes int
		change func(p *plan.Plan)
	}{
		"nothing": {0, func(p *plan.Plan) {}},
		"an element's value": {1, func(p *plan.Plan) {
			p.Elements.Set(endpoint, plan.Element{Value: plan.KeyOf(addr("10.244.1.9"), uint16(9))})
		}},
		"a verdict": {1, func(p *plan.Plan) { p.Elements.Set(pod, plan.Element{Verdict: "drop"}) }},
		"a verdict of a range": {1, func(p *plan.Plan) {
			p.Elements.Set(class, plan.Element{End: plan.KeyOf(uint8(6), uint16(99)), Verdict: "accept"})
		}},
		"a comment": {1, func(p *plan.Plan) { p.Elements.Set(member, plan.Element{Comment: "default/other"}) }},
		"a range's end": {1, func(p *plan.Plan) {
			p.Elements.Set(net, plan.Element{End: plan.KeyOf(addr("10.0.0.127"))})
		}},
		"a range cut in three": {3, func(p *plan.Plan) {
			p.Elements.Set(net, plan.Element{End: plan.KeyOf(addr("10.0.0.9"))})
			p.Elements.Set(plan.ElementKey{Set: "nets", Key: plan.KeyOf(addr("10.0.0.11"))}, plan.Element{End: plan.KeyOf(addr("10.0.0.20"))})
			p.Elements.Set(plan.ElementKey{Set: "nets", Key: plan.KeyOf(addr("10.0.0.30"))}, plan.Element{End: plan.KeyOf(addr("10.0.0.40"))})
		}},
		"a port range cut in two": {2, func(p *plan.Plan) {
			p.Elements.Set(class, plan.Element{End: plan.KeyOf(uint8(6), uint16(83)), Verdict: "accept"})
			p.Elements.Set(plan.ElementKey{Set: "class", Key: plan.KeyOf(uint8(6), uint16(84))},
				plan.Element{End: plan.KeyOf(uint8(6), uint16(89)), Verdict: "drop"})
		}},
		"a chain": {1, func(p *plan.Plan) { p.Chains.Set("leaf", plan.Chain{Rules: []plan.Rule{plan.R(plan.Drop)}}) }},
		"a chain's priority": {1, func(p *plan.Plan) {
			c, _ := p.Chains.Get("forward")
			c.Priority = 7
			p.Chains.Set("forward", c)
		}},
		// The set, its element, and the two chains that use it.
		"a set's type": {4, func(p *plan.Plan) {
			p.Sets.Set("members", plan.Set{Key: []plan.Type{plan.IPv4Addr}, Interval: true})
		}},
		"a set that goes": {1, func(p *plan.Plan) {
			p.Sets.Delete("target")
			p.Elements.Delete(plan.ElementKey{Set: "target", Key: plan.KeyOf(uint32(7))})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ns := testnet.New(t)
			k, p := open(t, ns), everything()
			apply(t, k, p)
			test.change(p)
			n := len(transactionsIn(t, ns, func() {
				if writes := apply(t, k, p); writes != test.writes {
					t.Errorf("%d writes, want %d", writes, test.writes)
				}
			}))
			if want := min(1, test.writes); n != want {
				t.Errorf("%d transactions, want %d", n, want)
			}
			settled(t, k, p)
			list(t, ns)
		})
	}
}

// TestBigLoadIsCut: 100,000 elements are several transactions, all are there,
// and go again.
func TestBigLoadIsCut(t *testing.T) {
	ns := testnet.New(t)
	k, p := open(t, ns), bigPlan(many)
	n := len(transactionsIn(t, ns, func() { apply(t, k, p) }))
	if want := many/maxWeight + 1; n != want {
		t.Errorf("loaded in %d transactions, want %d", n, want)
	}
	settled(t, k, p)
	for _, set := range []string{"members", "services"} {
		for key := range maps.Clone(k.have.sets[set].elements) {
			p.Elements.Delete(plan.ElementKey{Set: set, Key: key})
		}
		p.Sets.Delete(set)
	}
	p.Chains.Delete("forward")
	p.Chains.Delete("balance")
	apply(t, k, p)
	settled(t, k, p)
	if len(k.have.sets)+len(k.have.chains) != 0 {
		t.Errorf("left in the kernel: %v", k.have)
	}
}

// TestManyChains: more chains than one transaction takes, which jump to each
// other whatever their names' order, come and go.
func TestManyChains(t *testing.T) {
	const chains = 600
	k, p := open(t, testnet.New(t)), plan.New()
	name := func(i int) string { return fmt.Sprintf("chain-%d", i*7919%chains) }
	for i := range chains {
		c := plan.Chain{Rules: []plan.Rule{plan.R(plan.Counter{}, plan.Return)}}
		if i%10 != 0 { // the kernel allows 16 jumps in a row
			c.Rules = append(c.Rules, plan.R(plan.Jump(name(i-1))))
		}
		p.Chains.Set(name(i), c)
	}
	apply(t, k, p)
	settled(t, k, p)
	for i := range chains {
		p.Chains.Delete(name(i))
	}
	apply(t, k, p)
	settled(t, k, p)
}

// TestRefusals: what can't be written is named, stays dirty, and keeps nothing
// else from being written; when it is put right, it is written.
func TestRefusals(t *testing.T) {
	pod := plan.ElementKey{Set: "to-pod", Key: plan.KeyOf("tw-9")}
	good := plan.ElementKey{Set: "members", Key: plan.KeyOf(addr("10.9.9.9"))}
	drop := plan.R(plan.Drop)
	for name, test := range map[string]struct {
		breaks, mends func(p *plan.Plan)
		want          string
		dirty         int // if not 1
	}{
		"verdict to no chain": {
			func(p *plan.Plan) { p.Elements.Set(pod, plan.Element{Verdict: "goto nowhere"}) },
			func(p *plan.Plan) { p.Elements.Set(pod, plan.Element{Verdict: "drop"}) },
			"write element tw-9 of set to-pod: no such file or directory", 0},
		"one of many verdicts": {
			func(p *plan.Plan) {
				p.Elements.Set(pod, plan.Element{Verdict: "goto nowhere"})
				for i := range 300 {
					p.Elements.Set(plan.ElementKey{Set: "to-pod", Key: plan.KeyOf(fmt.Sprint("tw-x", i))}, plan.Element{Verdict: "goto leaf"})
				}
			},
			func(p *plan.Plan) { p.Chains.Set("nowhere", plan.Chain{}) },
			"write element tw-9 of set to-pod: no such file or directory", 0},
		"hook that the kernel refuses": {
			func(p *plan.Plan) { p.Chains.Set("bad", plan.Chain{Hook: "forward", Type: "nat"}) },
			func(p *plan.Plan) { p.Chains.Set("bad", plan.Chain{Hook: "forward", Type: "filter"}) },
			"write chain bad: operation not supported", 0},
		"loop": {
			func(p *plan.Plan) {
				p.Chains.Set("leaf", plan.Chain{Rules: []plan.Rule{plan.R(plan.Jump("statements"))}})
			},
			func(p *plan.Plan) { p.Chains.Set("leaf", plan.Chain{Rules: []plan.Rule{drop}}) },
			"write chain leaf: too many links", 0},
		"chain that is used": {
			func(p *plan.Plan) { p.Chains.Delete("leaf") },
			func(p *plan.Plan) { p.Chains.Set("leaf", plan.Chain{Rules: []plan.Rule{drop}}) },
			"remove chain leaf: still in use: device or resource busy", 0},
		"set that is used": {
			func(p *plan.Plan) {
				p.Sets.Delete("members6")
				p.Elements.Delete(plan.ElementKey{Set: "members6", Key: plan.KeyOf(addr("fd00::2"))})
			},
			func(p *plan.Plan) { p.Sets.Set("members6", plan.Set{Key: []plan.Type{plan.IPv6Addr}}) },
			"remove set members6: still in use: device or resource busy", 2},
		"overlapping ranges": {
			func(p *plan.Plan) {
				p.Elements.Set(plan.ElementKey{Set: "nets", Key: plan.KeyOf(addr("10.0.0.128"))}, plan.Element{End: plan.KeyOf(addr("10.0.1.3"))})
			},
			func(p *plan.Plan) {
				p.Elements.Delete(plan.ElementKey{Set: "nets", Key: plan.KeyOf(addr("10.0.0.128"))})
			},
			"write element 10.0.0.128 of set nets: ", 0},
		"unknown set": {
			func(p *plan.Plan) {
				p.Chains.Set("bad", plan.Chain{Rules: []plan.Rule{plan.R(plan.InSet{Fields: plan.Concat{plan.SrcIP4}, Set: "nope"}, plan.Drop)}})
			},
			func(p *plan.Plan) { p.Sets.Set("nope", plan.Set{Key: []plan.Type{plan.IPv4Addr}}) },
			`chain bad: rule 1: "ip saddr @nope": set nope is not in the plan`, 0},
		"element of no set": {
			func(p *plan.Plan) { p.Elements.Set(plan.ElementKey{Set: "nope", Key: "x"}, plan.Element{}) },
			func(p *plan.Plan) { p.Elements.Delete(plan.ElementKey{Set: "nope", Key: "x"}) },
			"element 78 of set nope: the set is not in the plan", 0},
		"bad set": {
			func(p *plan.Plan) { p.Sets.Set("bad", plan.Set{Key: []plan.Type{plan.Mark}, Interval: true}) },
			func(p *plan.Plan) { p.Sets.Set("bad", plan.Set{Key: []plan.Type{plan.Mark}}) },
			"set bad: no ranges of type mark", 0},
		"bad key": {
			func(p *plan.Plan) { p.Elements.Set(plan.ElementKey{Set: "members", Key: "12345"}, plan.Element{}) },
			func(p *plan.Plan) { p.Elements.Delete(plan.ElementKey{Set: "members", Key: "12345"}) },
			"of set members: a key of 5 bytes, the set's has 4", 0},
	} {
		t.Run(name, func(t *testing.T) {
			ns := testnet.New(t)
			k, p := open(t, ns), everything()
			apply(t, k, p)
			test.breaks(p)
			p.Elements.Set(good, plan.Element{})
			_, err := k.Apply(p)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Count(err.Error(), "\n") != 0 {
				t.Fatalf("error %v; want %q alone", err, test.want)
			}
			if p.Elements.IsDirty(good) {
				t.Error("another element was not written")
			}
			if n := p.Chains.DirtyLen() + p.Sets.DirtyLen() + p.Elements.DirtyLen(); n != max(1, test.dirty) {
				t.Errorf("%d keys are dirty, want %d", n, max(1, test.dirty))
			}
			if n, again := k.Apply(p); n != 0 || again == nil || again.Error() != err.Error() {
				t.Errorf("the next time: %d writes, %v", n, again)
			}
			test.mends(p)
			apply(t, k, p)
			settled(t, k, p)
			list(t, ns)
		})
	}
}

// TestManyRefusals: thousands of elements that can't be written end in time.
func TestManyRefusals(t *testing.T) {
	k, p := open(t, testnet.New(t)), bigPlan(10_000)
	for key, e := range maps.Collect(p.Elements.All()) {
		if e.Verdict != "" {
			p.Elements.Set(key, plan.Element{Verdict: "goto nowhere"})
		}
	}
	_, err := k.Apply(p)
	if err == nil || !strings.Contains(err.Error(), "and 4980 more") {
		t.Errorf("error: %v", err)
	}
	if n := p.Elements.DirtyLen(); n != 5000 || p.Chains.DirtyLen() != 0 {
		t.Errorf("%d elements and %d chains are dirty", n, p.Chains.DirtyLen())
	}
	p.Chains.Set("nowhere", plan.Chain{})
	apply(t, k, p)
}

// TestRandomPlans changes a plan at random and compares what the kernel then
// has with it, element by element, and with what another kernel has that got
// the end state at once.
func TestRandomPlans(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			ns := testnet.New(t)
			k, p := open(t, ns), plan.New()
			for range 12 {
				for range 1 + r.IntN(60) {
					mutate(r, p)
				}
				consistent(p)
				apply(t, k, p)
			}
			settled(t, k, p)
			list(t, ns)
			for name, s := range k.have.sets {
				want, got := map[string]plan.Element{}, map[string]plan.Element{}
				for key, e := range p.Elements.All() {
					if key.Set == name {
						want[key.Key] = e
					}
				}
				for key, e := range s.elements {
					got[key] = e.Element()
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("set %s (plan, kernel):\n%s", name, diff)
				}
			}
			other := open(t, testnet.New(t))
			apply(t, other, again(r, p))
			if diff := cmp.Diff(rules(k.have), rules(other.have)); diff != "" {
				t.Errorf("the order of changes matters:\n%s", diff)
			}
		})
	}
}

var randomSets = []plan.Set{
	{Key: []plan.Type{plan.IPv4Addr}},
	{Key: []plan.Type{plan.IPv4Addr}, Interval: true},
	{Key: []plan.Type{plan.IPv4Addr}, Value: []plan.Type{plan.VerdictType}},
	{Key: []plan.Type{plan.IPv4Addr}, Value: []plan.Type{plan.VerdictType}, Interval: true},
	{Key: []plan.Type{plan.IPv4Addr}, Value: []plan.Type{plan.Mark}, Comment: "marks"},
	{Key: []plan.Type{plan.IPv4Addr, plan.IPv4Addr}, Interval: true},
}

func setName(r *rand.Rand) string   { return fmt.Sprint("set-", r.IntN(6)) }
func chainName(r *rand.Rand) string { return fmt.Sprint("chain-", r.IntN(6)) }

// mutate makes one change. What is asked for may not fit together.
func mutate(r *rand.Rand, p *plan.Plan) {
	switch n := r.IntN(20); {
	case n == 0:
		p.Sets.Delete(setName(r))
	case n <= 2:
		p.Sets.Set(setName(r), randomSets[r.IntN(len(randomSets))])
	case n == 3:
		p.Chains.Delete(chainName(r))
		p.Chains.Delete("leaf")
	case n <= 5:
		p.Chains.Set("leaf", plan.Chain{Rules: []plan.Rule{plan.R(plan.Accept)}})
		name := chainName(r)
		var c plan.Chain
		for range r.IntN(4) {
			// Jumps lead to later names only: no loops.
			if to := chainName(r); to > name && r.IntN(2) == 0 {
				c.Rules = append(c.Rules, plan.R(plan.Counter{}, plan.Jump(to)))
				continue
			}
			c.Rules = append(c.Rules, plan.R(plan.InSet{Fields: plan.Concat{plan.SrcIP4}, Set: setName(r)}, plan.Reject{}).
				WithComment(fmt.Sprint("rule ", r.IntN(100))))
		}
		if name == "chain-0" { // to which nobody jumps
			c.Hook, c.Type, c.Priority = "input", "filter", r.IntN(3)
		}
		p.Chains.Set(name, c)
	default:
		// Ranges of sixteen addresses at most, at multiples of sixteen.
		key := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(r.IntN(64))<<26|uint32(r.IntN(3)*16))))
		k := plan.ElementKey{Set: setName(r), Key: plan.KeyOf(key)}
		if r.IntN(3) == 0 {
			p.Elements.Delete(k)
			return
		}
		p.Elements.Set(k, plan.Element{Comment: []string{"", "one", "two"}[r.IntN(3)], Value: fmt.Sprint(r.IntN(1 << 16))})
	}
}

// consistent makes a mutated plan one that a kernel can have: elements fit
// their sets, and what is referred to is there.
func consistent(p *plan.Plan) {
	for name, c := range maps.Collect(p.Chains.All()) {
		c.Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(r plan.Rule) bool {
			for _, s := range r.Statements {
				if v, ok := s.(plan.Verdict); ok {
					_, there := p.Chains.Get(strings.TrimPrefix(string(v), "jump "))
					return !there
				}
			}
			s, ok := p.Sets.Get(setsOf(r)[0])
			return !ok || len(s.Key) > 1
		})
		p.Chains.Set(name, c)
	}
	for k, e := range maps.Collect(p.Elements.All()) {
		s, ok := p.Sets.Get(k.Set)
		if !ok {
			p.Elements.Delete(k)
			continue
		}
		p.Elements.Delete(k)
		seed, value := k.Key[3], e.Value
		e.Value = ""
		k.Key = strings.Repeat(k.Key[:4], len(s.Key))
		if s.Interval {
			last := []byte(k.Key)
			for i := 3; i < len(last); i += 4 {
				last[i] += seed % 15
			}
			e.End = string(last)
		} else {
			e.End = ""
		}
		switch {
		case s.Value == nil:
			e.Verdict = ""
		case s.Value[0] == plan.Mark:
			e.Value, e.Verdict = fmt.Sprintf("%.4s", value+"0000"), ""
		case e.Verdict == "":
			e.Verdict = "drop"
			if _, there := p.Chains.Get("leaf"); there {
				e.Verdict = "goto leaf"
			}
		case e.Verdict == "goto leaf":
			if _, there := p.Chains.Get("leaf"); !there {
				e.Verdict = "return"
			}
		}
		p.Elements.Set(k, e)
	}
}

// again asks for the same in another order.
func again(r *rand.Rand, p *plan.Plan) *plan.Plan {
	out := plan.New()
	var steps []func()
	for k, v := range p.Sets.All() {
		steps = append(steps, func() { out.Sets.Set(k, v) })
	}
	for k, v := range p.Chains.All() {
		steps = append(steps, func() { out.Chains.Set(k, v) })
	}
	for k, v := range p.Elements.All() {
		steps = append(steps, func() { out.Elements.Set(k, v) })
	}
	r.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	for _, step := range steps {
		step()
	}
	return out
}
