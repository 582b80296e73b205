package policy

import (
	"encoding/json"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
)

// FuzzParse takes in a NetworkPolicy that somebody wrote past the API. What is
// understood of it is compiled, and decides as Evaluate says; a policy that is
// not understood in whole never allows what it would not with all of it.
func FuzzParse(f *testing.F) {
	for _, spec := range []string{
		`{}`,
		`{podSelector: {matchLabels: {app: x}}, ingress: [{}], egress: []}`,
		`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}}, {podSelector: {}}], ports: [{port: 80, endPort: 90}, {port: http, protocol: UDP}]}]}`,
		`{egress: [{to: [{namespaceSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x]}]}, podSelector: {}}]}], policyTypes: [Egress]}`,
		`{ingress: [{from: [{ipBlock: {cidr: "::ffff:10.0.0.0/104"}}, {ipBlock: {cidr: "::/0", except: ["fd00::/8"]}}], ports: [{protocol: SCTP, port: 65535}]}], policyTypes: [Both]}`,
		`{ingress: [{from: [{}], ports: [{endPort: 1}, {port: ""}, {port: 70000}]}], podSelector: {matchLabels: {"a b": c}}}`,
	} {
		text, err := yaml.YAMLToJSON([]byte(spec))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	state, key := fuzzState()
	f.Fuzz(func(t *testing.T, spec []byte) {
		np := &networkingv1.NetworkPolicy{}
		if json.Unmarshal(spec, &np.Spec) != nil {
			return
		}
		np.Namespace, np.Name = "a", "p"
		p, err := Parse(np)
		if p == nil {
			if err == nil {
				t.Error("neither a policy nor an error")
			}
			return
		}
		c, prog := NewCompiler(), newProgram()
		for name, labels := range state.Namespaces {
			c.SetNamespace(name, labels)
		}
		for _, e := range state.Endpoints {
			c.SetEndpoint(e)
		}
		state.Policies = map[api.Key]*Policy{p.Key: p}
		c.SetPolicy(p)
		if err := prog.apply(c.Flush()); err != nil {
			t.Fatal(err)
		}
		for _, peer := range []string{"10.0.0.1", "10.0.0.2", "10.0.1.1", "192.0.2.1", "fd00::2", "2001:db8::1"} {
			for _, port := range []uint16{1, 80, 81, 65535} {
				for _, proto := range []uint8{TCP, UDP, SCTP} {
					for _, d := range []Direction{Ingress, Egress} {
						conn := Connection{Direction: d, Pod: key, Peer: netip.MustParseAddr(peer), Protocol: proto, Port: port}
						want := Evaluate(state, conn)
						if got := prog.allows(d, key, conn.Peer, proto, port); got != want.Allowed {
							t.Errorf("%+v: compiled form allows: %t; evaluator: %s", conn, got, want.Reason)
						}
					}
				}
			}
		}
	})
}

// fuzzState is a local pod in namespace a and others; its key is the second
// result.
func fuzzState() (State, api.Key) {
	s := State{
		Namespaces: map[string]map[string]string{"a": {"app": "x"}, "b": {"app": "y"}},
		Endpoints:  map[api.Key]Endpoint{},
	}
	for i, e := range []Endpoint{
		{Key: api.Key{Namespace: "a", Name: "1"}, Labels: map[string]string{"app": "x"}, Local: true, Ports: []NamedPort{{"http", TCP, 80}, {"http", UDP, 81}}},
		{Key: api.Key{Namespace: "a", Name: "2"}, Labels: map[string]string{"app": "y"}, Ports: []NamedPort{{"http", TCP, 81}}},
		{Key: api.Key{Namespace: "b", Name: "3"}, Labels: map[string]string{"app": "x"}},
	} {
		e.Addrs = []netip.Addr{
			netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)}), netip.MustParseAddr("fd00::a").Next(),
		}
		if i > 0 {
			e.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), netip.MustParseAddr("fd00::2")}
		}
		s.Endpoints[e.Key] = e
	}
	return s, api.Key{Namespace: "a", Name: "1"}
}
