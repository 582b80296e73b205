package policy

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/twill-net/twill/api"
)

// The load: 5,000 policies over 250 local endpoints in 50 groups, 50,000 remote
// endpoints; each policy allows ten of them and a block to one port.
const (
	benchPolicies = 5000
	benchLocals   = 250
	benchGroups   = 50
	benchRemotes  = 50000
)

func benchPolicy(i int) *Policy {
	return &Policy{
		Key:      api.Key{Namespace: "app", Name: fmt.Sprintf("policy-%d", i)},
		Pods:     selectorOf(requirement{"group", "In", []string{fmt.Sprint(i % benchGroups)}}),
		Isolates: [2]bool{Ingress: true},
		Rules: [2][]Rule{Ingress: {{
			Peers: []Peer{
				{Pods: selectorOf(requirement{"client", "In", []string{fmt.Sprint(i)}}), Namespaces: selectorOf()},
				{Block: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(i >> 6), byte(i << 2), 0}), 24)},
			},
			Ports: []Port{{Protocol: TCP, First: 80, Last: 80}},
		}}},
	}
}

func benchLocal(i int) Endpoint {
	return Endpoint{
		Key: api.Key{Namespace: "app", Name: fmt.Sprintf("local-%d", i)}, Local: true,
		Labels: map[string]string{"group": fmt.Sprint(i % benchGroups), "pod": fmt.Sprintf("local-%d", i)},
		Addrs:  []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})},
	}
}

// benchRemote has labels that no other endpoint has, which is the worst case.
func benchRemote(i int) Endpoint {
	return Endpoint{
		Key: api.Key{Namespace: fmt.Sprintf("ns-%d", i%500), Name: fmt.Sprintf("remote-%d", i)},
		Labels: map[string]string{"client": fmt.Sprint(i % benchPolicies), "pod": fmt.Sprintf("remote-%d", i),
			"app": fmt.Sprintf("app-%d", i%1000), "release": "stable", "env": "prod"},
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)})},
		Ports: []NamedPort{{"http", TCP, 8080}},
	}
}

type benchIntent struct {
	policies []*Policy
	locals   []Endpoint
	remotes  []Endpoint
}

func newBenchIntent() *benchIntent {
	in := &benchIntent{}
	for i := range benchPolicies {
		in.policies = append(in.policies, benchPolicy(i))
	}
	for i := range benchLocals {
		in.locals = append(in.locals, benchLocal(i))
	}
	for i := range benchRemotes {
		in.remotes = append(in.remotes, benchRemote(i))
	}
	return in
}

func (in *benchIntent) tell(c *Compiler) {
	for i := range 500 {
		c.SetNamespace(fmt.Sprintf("ns-%d", i), map[string]string{"team": fmt.Sprint(i % 20)})
	}
	for _, e := range in.remotes {
		c.SetEndpoint(e)
	}
	for _, e := range in.locals {
		c.SetEndpoint(e)
	}
	for _, p := range in.policies {
		c.SetPolicy(p)
	}
}

func BenchmarkFirstSync(b *testing.B) {
	in := newBenchIntent()
	var c *Compiler
	for b.Loop() {
		c = NewCompiler()
		in.tell(c)
		c.Flush()
	}
	in = nil
	runtime.GC()
	var with, without runtime.MemStats
	runtime.ReadMemStats(&with)
	runtime.KeepAlive(c)
	c = nil
	runtime.GC()
	runtime.ReadMemStats(&without)
	b.ReportMetric(float64(with.HeapAlloc-without.HeapAlloc)/(1<<20), "MiB")
}

func BenchmarkMember(b *testing.B) {
	c := NewCompiler()
	newBenchIntent().tell(c)
	c.Flush()
	for i := 0; b.Loop(); i++ {
		e := benchRemote(benchRemotes + i/2)
		if i%2 == 0 {
			c.SetEndpoint(e)
		} else {
			c.DeleteEndpoint(e.Key)
		}
		if d := c.Flush(); len(d.Sets) != 1 || len(d.Groups) != 0 {
			b.Fatalf("one member changed %d sets and %d groups", len(d.Sets), len(d.Groups))
		}
	}
}

func BenchmarkPolicy(b *testing.B) {
	c := NewCompiler()
	newBenchIntent().tell(c)
	c.Flush()
	for i := 0; b.Loop(); i++ {
		p := benchPolicy(benchGroups) // of another group, but for ...
		p.Key.Name = "one-more"
		p.Pods = selectorOf(requirement{"group", "In", []string{"7"}})
		if i%2 == 0 {
			c.SetPolicy(p)
		} else {
			c.DeletePolicy(p.Key)
		}
		if d := c.Flush(); len(d.Groups) != 1 || len(d.Sets) != 2 {
			b.Fatalf("one policy changed %d sets and %d groups", len(d.Sets), len(d.Groups))
		}
	}
}
