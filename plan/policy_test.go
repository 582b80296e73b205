package plan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/policy"
	"github.com/twill-net/twill/test/golden"
)

// policyScene is a policyPlanner with what it was told.
type policyScene struct {
	*policyPlanner
	state policy.State
}

func newPolicyScene(t *testing.T, policies string) *policyScene {
	t.Helper()
	s := &policyScene{newPolicyPlanner(New()), policy.State{
		Namespaces: map[string]map[string]string{}, Endpoints: map[api.Key]policy.Endpoint{}, Policies: map[api.Key]*policy.Policy{},
	}}
	text, err := os.ReadFile(policies)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(text), "\n---\n") {
		var np networkingv1.NetworkPolicy
		if err := yaml.UnmarshalStrict([]byte(doc), &np); err != nil {
			t.Fatal(err)
		}
		if err := s.setPolicy(&np); err != nil {
			t.Fatal(err)
		}
		s.state.Policies[api.KeyOf(&np)], _ = policy.Parse(&np)
	}
	return s
}

func (s *policyScene) namespace(name string, labels map[string]string) {
	s.setNamespace(name, labels)
	s.state.Namespaces[name] = labels
}

// pod adds a pod; hostInterface is empty if it is on another node.
func (s *policyScene) pod(namespace, name, hostInterface string, labels map[string]string, ports []policy.NamedPort, addrs ...string) {
	e := policy.Endpoint{Key: api.Key{Namespace: namespace, Name: name}, Labels: labels, Ports: ports, Local: hostInterface != ""}
	for _, a := range addrs {
		e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
	}
	s.setEndpoint(e.Key, e, hostInterface)
	s.state.Endpoints[e.Key] = e
}

func (s *policyScene) ruleset() string {
	var b bytes.Buffer
	s.plan.WriteRuleset(&b)
	return b.String()
}

func accessNginx(t *testing.T) *policyScene {
	s := newPolicyScene(t, "testdata/policy-access-nginx.yaml")
	s.namespace("policy-demo", nil)
	s.pod("policy-demo", "nginx-1", "tw-nginx1", map[string]string{"app": "nginx"}, nil, "10.244.1.2")
	s.pod("policy-demo", "nginx-2", "", map[string]string{"app": "nginx"}, nil, "10.244.2.2")
	s.pod("policy-demo", "access", "", map[string]string{"run": "access"}, nil, "10.244.2.3")
	s.pod("default", "access", "", map[string]string{"run": "access"}, nil, "10.244.2.4")
	s.flush()
	return s
}

func complexShop(t *testing.T) *policyScene {
	s := newPolicyScene(t, "testdata/policy-complex.yaml")
	s.namespace("shop", map[string]string{"team": "sales"})
	s.namespace("monitoring", map[string]string{"team": "ops"})
	s.pod("shop", "web", "tw-web", map[string]string{"app": "web"}, []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: 8080}}, "10.244.1.2", "fd00::1:2")
	s.pod("shop", "db", "tw-db", map[string]string{"app": "db"}, []policy.NamedPort{{Name: "sql", Protocol: policy.TCP, Port: 5432}}, "10.244.1.3")
	s.pod("shop", "front", "tw-front", map[string]string{"app": "front"}, nil, "10.244.1.4")
	s.pod("shop", "cart", "", map[string]string{"app": "cart"}, nil, "10.244.2.2", "fd00::2:2")
	s.pod("shop", "db-2", "", map[string]string{"app": "db"}, []policy.NamedPort{{Name: "sql", Protocol: policy.TCP, Port: 5433}}, "10.244.2.3", "fd00::2:3")
	s.pod("monitoring", "scraper", "", nil, nil, "10.244.2.4", "fd00::2:4")
	s.pod("kube-system", "dns", "", map[string]string{"k8s-app": "dns"}, nil, "10.244.2.5", "fd00::2:5")
	s.pod("default", "free", "tw-free", nil, nil, "10.244.1.9")
	s.flush()
	return s
}

func TestPolicyGolden(t *testing.T) {
	golden.Check(t, "testdata/policy-access-nginx.golden", accessNginx(t).ruleset())
	golden.Check(t, "testdata/policy-complex.golden", complexShop(t).ruleset())
}

// The planned rules, interpreted statement by statement, give the evaluator's
// verdicts.
func TestPolicyRulesAgreeWithEvaluate(t *testing.T) {
	for _, s := range []*policyScene{accessNginx(t), complexShop(t)} {
		peers := []netip.Addr{}
		for _, text := range strings.Fields("172.17.0.1 172.17.1.1 192.0.2.7 192.0.2.8 255.255.255.255 2001:db8::1 2001:db9::1") {
			peers = append(peers, netip.MustParseAddr(text))
		}
		for _, e := range s.state.Endpoints {
			peers = append(peers, e.Addrs...)
		}
		cases := 0
		for key, d := range s.dispatched {
			for _, peer := range peers {
				for _, proto := range []uint8{policy.TCP, policy.UDP, policy.SCTP, 1} {
					for _, port := range []uint16{0, 53, 80, 443, 5432, 5433, 7999, 8000, 8005, 8010, 8011, 8080, 9100, 9101, 65535} {
						if proto == 1 {
							port = 0
						}
						for _, dir := range []policy.Direction{policy.Ingress, policy.Egress} {
							conn := policy.Connection{Direction: dir, Pod: key, Peer: peer, Protocol: proto, Port: port}
							if !ownFamily(s.state.Endpoints[key], peer) || slices.Contains(s.state.Endpoints[key].Addrs, peer) {
								continue
							}
							cases++
							want := policy.Evaluate(s.state, conn)
							if got := passes(t, s.plan, d.hostInterface, conn); got != want.Allowed {
								t.Fatalf("%+v: rules allow: %t; evaluator: %s\n%s", conn, got, want.Reason, s.ruleset())
							}
						}
					}
				}
			}
		}
		if cases == 0 {
			t.Error("nothing was tried")
		}
	}
}

func ownFamily(e policy.Endpoint, peer netip.Addr) bool {
	for _, a := range e.Addrs {
		if a.Is4() == peer.Is4() {
			return true
		}
	}
	return false
}

// passes sends a packet through the dispatch of the connection's direction.
func passes(t *testing.T, p *Plan, hostInterface string, c policy.Connection) bool {
	t.Helper()
	name := mapToPod
	if c.Direction == policy.Egress {
		name = mapFromPod
	}
	e, ok := p.Elements.Get(ElementKey{name, KeyOf(hostInterface)})
	if !ok {
		return true
	}
	return walk(t, p, Verdict(e.Verdict), c) != Drop
}

// walk follows a verdict to the one that ends it. A chain that ends without one
// would return to the hook, which is the same as Return here.
func walk(t *testing.T, p *Plan, v Verdict, c policy.Connection) Verdict {
	t.Helper()
	verb, name, isChain := strings.Cut(string(v), " ")
	if !isChain {
		return v
	}
	chain, ok := p.Chains.Get(name)
	if !ok {
		t.Fatalf("%s %s: there is no such chain", verb, name)
	}
	for _, rule := range chain.Rules {
		for _, statement := range rule.Statements {
			next, matched := step(t, p, statement, c)
			if next != "" {
				return walk(t, p, next, c)
			}
			if !matched {
				break
			}
		}
	}
	return Return
}

func step(t *testing.T, p *Plan, statement Statement, c policy.Connection) (next Verdict, matched bool) {
	t.Helper()
	switch s := statement.(type) {
	case Verdict:
		return s, true
	case Family:
		return "", c.Peer.Is4() == (s == 4)
	case InSet:
		_, found := lookUp(t, p, s.Fields, s.Set, c)
		return "", found != s.Not
	case Dispatch:
		e, found := lookUp(t, p, s.Fields, s.Map, c)
		return Verdict(e.Verdict), found
	}
	t.Fatalf("policy chains have no statement %T", statement)
	return "", false
}

func lookUp(t *testing.T, p *Plan, fields Concat, name string, c policy.Connection) (Element, bool) {
	t.Helper()
	set, ok := p.Sets.Get(name)
	if !ok {
		t.Fatalf("there is no set %s", name)
	}
	var key []any
	for i, f := range fields {
		ok := true
		switch f {
		case SrcIP4, DstIP4, SrcIP6, DstIP6:
			key = append(key, c.Peer)
			ok = (f == SrcIP4 || f == SrcIP6) == (c.Direction == policy.Ingress) && (set.Key[i] == IPv4Addr) == (f == SrcIP4 || f == DstIP4)
			if c.Peer.Is4() != (f == SrcIP4 || f == DstIP4) {
				return Element{}, false
			}
		case L4Proto:
			key = append(key, c.Protocol)
			ok = set.Key[i] == InetProto
		case DstPort:
			key = append(key, c.Port)
			ok = set.Key[i] == InetService
		}
		if !ok {
			t.Fatalf("%s does not fit set %s %s in direction %s", f, name, set, c.Direction)
		}
	}
	packed := KeyOf(key...)
	if !set.Interval {
		return p.Elements.Get(ElementKey{name, packed})
	}
	for k, e := range p.Elements.All() {
		if k.Set == name && inInterval(set.Key, k.Key, e.End, packed) {
			return e, true
		}
	}
	return Element{}, false
}

// inInterval compares field by field, as the kernel does for concatenations.
func inInterval(types []Type, from, to, key string) bool {
	for _, t := range types {
		n := t.Size()
		if key[:n] < from[:n] || key[:n] > to[:n] {
			return false
		}
		from, to, key = from[n:], to[n:], key[n:]
	}
	return true
}

// An interface that goes from one pod to another, in whichever order that is
// told, ends with the new pod's policy.
func TestPolicyInterfaceChangesHands(t *testing.T) {
	key := ElementKey{mapToPod, KeyOf("tw-nginx1")}
	old, next := api.Key{Namespace: "policy-demo", Name: "nginx-1"}, api.Key{Namespace: "policy-demo", Name: "nginx-3"}
	ep := policy.Endpoint{Labels: map[string]string{"app": "nginx"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.7")}}
	for name, tell := range map[string]func(s *policyScene){
		"new first":   func(s *policyScene) { s.setEndpoint(next, ep, "tw-nginx1"); s.flush(); s.deleteEndpoint(old) },
		"old first":   func(s *policyScene) { s.deleteEndpoint(old); s.flush(); s.setEndpoint(next, ep, "tw-nginx1") },
		"in one step": func(s *policyScene) { s.setEndpoint(next, ep, "tw-nginx1"); s.deleteEndpoint(old) },
	} {
		s := accessNginx(t)
		before, _ := s.plan.Elements.Get(key)
		tell(s)
		s.flush()
		if e, _ := s.plan.Elements.Get(key); e != before || e.Verdict == "" {
			t.Errorf("%s: to-pod has %q, want %q", name, e.Verdict, before.Verdict)
		}
		s.setEndpoint(next, policy.Endpoint{}, "tw-nginx1")
		s.flush()
		if e, ok := s.plan.Elements.Get(key); ok {
			t.Errorf("%s: the pod is not isolated any more, but to-pod has %q", name, e.Verdict)
		}
	}
}

// Everything that policy planned goes when the policies go.
func TestPolicyLeavesNothing(t *testing.T) {
	s := complexShop(t)
	for key := range s.state.Policies {
		s.deletePolicy(key)
	}
	s.flush()
	if left, empty := s.ruleset(), (&policyScene{policyPlanner: newPolicyPlanner(New())}).ruleset(); left != empty {
		t.Errorf("left over:\n%s\nwant:\n%s", left, empty)
	}
}

// What can't be understood is told, and closes rather than opens.
func TestPolicyNotUnderstood(t *testing.T) {
	s := accessNginx(t)
	np := &networkingv1.NetworkPolicy{}
	np.Namespace, np.Name = "policy-demo", "access-nginx"
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "everywhere"}}}}}
	err := s.setPolicy(np)
	if want := "networkpolicy policy-demo/access-nginx: spec.ingress[0].from[0].ipBlock.cidr: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got error %v, want %s...", err, want)
	}
	s.flush()
	conn := policy.Connection{Pod: api.Key{Namespace: "policy-demo", Name: "nginx-1"}, Peer: netip.MustParseAddr("10.244.2.3"), Protocol: policy.TCP, Port: 80}
	if passes(t, s.plan, "tw-nginx1", conn) {
		t.Error("a policy without a rule that can be understood allows a peer")
	}
}

// BenchmarkPolicyPlan has 5,000 policies over 250 local pods in 50 groups, and
// 50,000 pods elsewhere.
func BenchmarkPolicyPlan(b *testing.B) {
	newPolicy := func(i int) *networkingv1.NetworkPolicy {
		text := fmt.Sprintf(`
metadata: {name: policy-%d, namespace: app}
spec:
  podSelector: {matchLabels: {group: "%d"}}
  ingress:
  - from:
    - {namespaceSelector: {}, podSelector: {matchLabels: {client: "%d"}}}
    - {ipBlock: {cidr: 192.%d.%d.0/24}}
    ports: [{port: 80}]`, i, i%50, (i+i/5000)%5000, i>>7, i<<1&255)
		np := &networkingv1.NetworkPolicy{}
		if err := yaml.Unmarshal([]byte(text), np); err != nil {
			b.Fatal(err)
		}
		return np
	}
	newPod := func(i int) (api.Key, policy.Endpoint) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 10<<24+uint32(i))
		return api.Key{Namespace: fmt.Sprintf("ns-%d", i%500), Name: fmt.Sprintf("pod-%d", i)},
			policy.Endpoint{Labels: map[string]string{"client": fmt.Sprint(i % 5000), "pod": fmt.Sprint(i)}, Addrs: []netip.Addr{netip.AddrFrom4(a)}}
	}
	var policies []*networkingv1.NetworkPolicy
	for i := range 5000 {
		policies = append(policies, newPolicy(i))
	}
	sync := func() *policyPlanner {
		pp := newPolicyPlanner(New())
		for i := range 50000 {
			key, ep := newPod(i)
			pp.setEndpoint(key, ep, "")
		}
		for i := range 250 {
			ep := policy.Endpoint{Labels: map[string]string{"group": fmt.Sprint(i % 50)}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 255, 0, byte(i)})}}
			pp.setEndpoint(api.Key{Namespace: "app", Name: fmt.Sprint(i)}, ep, fmt.Sprintf("tw-%d", i))
		}
		for _, np := range policies {
			if err := pp.setPolicy(np); err != nil {
				b.Fatal(err)
			}
		}
		pp.flush()
		return pp
	}
	b.Run("FirstSync", func(b *testing.B) {
		var pp *policyPlanner
		for b.Loop() {
			pp = sync()
		}
		var with, without runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&with)
		b.ReportMetric(float64(pp.plan.Elements.Len()), "elements")
		b.ReportMetric(float64(pp.plan.Chains.Len()), "chains")
		b.ReportMetric(float64(pp.plan.Sets.Len()), "sets")
		pp = nil
		runtime.GC()
		runtime.ReadMemStats(&without)
		b.ReportMetric(float64(with.HeapAlloc-without.HeapAlloc)/(1<<20), "MiB")
	})
	pp := sync()
	clean := func() int {
		n := pp.plan.Elements.DirtyLen() + pp.plan.Chains.DirtyLen() + pp.plan.Sets.DirtyLen()
		for k := range pp.plan.Elements.Dirty() {
			pp.plan.Elements.MarkClean(k)
		}
		for k := range pp.plan.Chains.Dirty() {
			pp.plan.Chains.MarkClean(k)
		}
		for k := range pp.plan.Sets.Dirty() {
			pp.plan.Sets.MarkClean(k)
		}
		return n
	}
	clean()
	b.Run("Member", func(b *testing.B) {
		key, ep := newPod(50000)
		n := 0
		for i := 0; b.Loop(); i++ {
			if i%2 == 0 {
				pp.setEndpoint(key, ep, "")
			} else {
				pp.deleteEndpoint(key)
			}
			pp.flush()
			n = clean()
		}
		b.ReportMetric(float64(n), "writes")
	})
	b.Run("Policy", func(b *testing.B) {
		np := newPolicy(5007)
		n := 0
		for i := 0; b.Loop(); i++ {
			if i%2 == 0 {
				if err := pp.setPolicy(np); err != nil {
					b.Fatal(err)
				}
			} else {
				pp.deletePolicy(api.KeyOf(np))
			}
			pp.flush()
			n = clean()
		}
		b.ReportMetric(float64(n), "writes")
	})
}
