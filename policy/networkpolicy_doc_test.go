package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
)

// The cluster of the documentation's examples: a namespace with a database that
// is judged, and peers inside and outside.
func docState() State {
	s := State{Namespaces: map[string]map[string]string{
		"default":   {},
		"myproject": {"project": "myproject"},
		"frontend":  {"namespace": "frontend"},
		"backend":   {"namespace": "backend"},
		// "unheard-of" is not known
	}, Endpoints: map[api.Key]Endpoint{}, Policies: map[api.Key]*Policy{}}
	for _, line := range []string{
		"default/db role=db 10.244.1.1",
		"default/frontend role=frontend 10.244.1.2",
		"default/other role=other 10.244.1.3",
		"myproject/client user=alice 10.244.2.1",
		"myproject/stranger user=bob 10.244.2.2",
		"frontend/web app=web 10.244.3.1",
		"backend/api app=api 10.244.4.1",
		"backend/client user=alice 10.244.4.2",
		"unheard-of/pod app=web 10.244.5.1",
	} {
		f := strings.Fields(line)
		namespace, name, _ := strings.Cut(f[0], "/")
		k, v, _ := strings.Cut(f[1], "=")
		key := api.Key{Namespace: namespace, Name: name}
		s.Endpoints[key] = Endpoint{Key: key, Labels: map[string]string{k: v}, Addrs: []netip.Addr{netip.MustParseAddr(f[2])}, Local: true}
	}
	return s
}

// docTests are the examples of the Kubernetes documentation on network policies,
// each with connections of default/db: "<" from and ">" to a peer, which is a pod
// or an address, then the port.
var docTests = []struct {
	name, spec     string
	allowed, other string // other: must not pass
}{
	{
		name:    "no policy at all",
		spec:    "",
		allowed: "<default/other:tcp/80 <8.8.8.8:udp/53 >8.8.8.8:tcp/443 <8.8.8.8:icmp",
	}, {
		name:    "default deny all ingress traffic",
		spec:    `{podSelector: {}, policyTypes: [Ingress]}`,
		allowed: ">default/other:tcp/80 >8.8.8.8:icmp",
		other:   "<default/other:tcp/80 <8.8.8.8:udp/53 <8.8.8.8:icmp",
	}, {
		name:    "allow all ingress traffic",
		spec:    `{podSelector: {}, ingress: [{}], policyTypes: [Ingress]}`,
		allowed: "<default/other:tcp/80 <8.8.8.8:icmp >8.8.8.8:tcp/443",
	}, {
		name:    "default deny all egress traffic",
		spec:    `{podSelector: {}, policyTypes: [Egress]}`,
		allowed: "<default/other:tcp/80 <8.8.8.8:icmp",
		other:   ">default/other:tcp/80 >8.8.8.8:udp/53 >8.8.8.8:icmp",
	}, {
		name:    "allow all egress traffic",
		spec:    `{podSelector: {}, egress: [{}], policyTypes: [Egress]}`,
		allowed: ">default/other:tcp/80 >8.8.8.8:icmp <8.8.8.8:tcp/443",
	}, {
		name:  "default deny all ingress and all egress traffic",
		spec:  `{podSelector: {}, policyTypes: [Ingress, Egress]}`,
		other: "<default/other:tcp/80 <8.8.8.8:icmp >default/other:tcp/80 >8.8.8.8:udp/53",
	}, {
		name: "the example with ipBlock, namespaceSelector and podSelector",
		spec: `
podSelector: {matchLabels: {role: db}}
policyTypes: [Ingress, Egress]
ingress:
- from:
  - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
  - namespaceSelector: {matchLabels: {project: myproject}}
  - podSelector: {matchLabels: {role: frontend}}
  ports: [{protocol: TCP, port: 6379}]
egress:
- to: [{ipBlock: {cidr: 10.0.0.0/24}}]
  ports: [{protocol: TCP, port: 5978}]`,
		allowed: "<172.17.0.1:tcp/6379 <172.17.2.0:tcp/6379 <myproject/stranger:tcp/6379 <default/frontend:tcp/6379 >10.0.0.7:tcp/5978",
		other: "<172.17.1.1:tcp/6379 <172.18.0.1:tcp/6379 <default/other:tcp/6379 <frontend/web:tcp/6379 <default/frontend:tcp/6380 " +
			"<default/frontend:udp/6379 <default/frontend:icmp >10.0.0.7:tcp/5979 >10.0.1.7:tcp/5978 >default/frontend:tcp/6379",
	}, {
		name: "one item with both selectors: users in these namespaces",
		spec: `
podSelector: {}
ingress:
- from:
  - namespaceSelector: {matchLabels: {project: myproject}}
    podSelector: {matchLabels: {user: alice}}`,
		allowed: "<myproject/client:tcp/1",
		other:   "<myproject/stranger:tcp/1 <backend/client:tcp/1 <default/other:tcp/1",
	}, {
		name: "two items: these namespaces, or these pods of the own namespace",
		spec: `
podSelector: {}
ingress:
- from:
  - namespaceSelector: {matchLabels: {project: myproject}}
  - podSelector: {matchLabels: {role: other}}`,
		allowed: "<myproject/client:tcp/1 <myproject/stranger:tcp/1 <default/other:tcp/1",
		other:   "<backend/client:tcp/1 <default/frontend:tcp/1",
	}, {
		name: "a range of ports",
		spec: `
podSelector: {matchLabels: {role: db}}
policyTypes: [Egress]
egress:
- to: [{ipBlock: {cidr: 10.0.0.0/24}}]
  ports: [{protocol: TCP, port: 32000, endPort: 32768}]`,
		allowed: ">10.0.0.1:tcp/32000 >10.0.0.1:tcp/32400 >10.0.0.1:tcp/32768 <default/other:tcp/1",
		other:   ">10.0.0.1:tcp/31999 >10.0.0.1:tcp/32769 >10.0.0.1:udp/32400 >10.0.1.1:tcp/32400",
	}, {
		name: "several namespaces by label",
		spec: `
podSelector: {}
policyTypes: [Egress]
egress:
- to:
  - namespaceSelector:
      matchExpressions: [{key: namespace, operator: In, values: [frontend, backend]}]`,
		allowed: ">frontend/web:tcp/80 >backend/api:tcp/80 >backend/client:icmp",
		other:   ">myproject/client:tcp/80 >default/other:tcp/80 >8.8.8.8:tcp/80",
	}, {
		name: "a namespace by its name, even one that we know nothing of",
		spec: `
podSelector: {}
ingress:
- from:
  - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: myproject}}
  - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: unheard-of}}`,
		allowed: "<myproject/client:tcp/80 <unheard-of/pod:tcp/80",
		other:   "<frontend/web:tcp/80",
	}, {
		name:    "an empty namespaceSelector selects all namespaces, but not the outside world",
		spec:    `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`,
		allowed: "<myproject/client:tcp/80 <unheard-of/pod:tcp/80 <default/other:icmp",
		other:   "<8.8.8.8:tcp/80",
	}, {
		name:    "egress rules make an egress policy, and an ingress policy too",
		spec:    `{podSelector: {}, egress: [{to: [{podSelector: {}}]}]}`,
		allowed: ">default/other:tcp/80",
		other:   ">8.8.8.8:tcp/80 <default/other:tcp/80",
	},
}

func TestDocumentationExamples(t *testing.T) {
	for _, tt := range docTests {
		t.Run(tt.name, func(t *testing.T) {
			s := docState()
			c, prog := NewCompiler(), newProgram()
			if tt.spec != "" {
				np := &networkingv1.NetworkPolicy{}
				np.Namespace, np.Name = "default", "example"
				if err := yaml.UnmarshalStrict([]byte(tt.spec), &np.Spec); err != nil {
					t.Fatal(err)
				}
				p, err := Parse(np)
				if err != nil {
					t.Fatal(err)
				}
				s.Policies[p.Key] = p
				c.SetPolicy(p)
			}
			for name, labels := range s.Namespaces {
				c.SetNamespace(name, labels)
			}
			for _, e := range s.Endpoints {
				c.SetEndpoint(e)
			}
			if err := prog.apply(c.Flush()); err != nil {
				t.Fatal(err)
			}
			for _, text := range strings.Fields(tt.allowed + " | " + tt.other) {
				if text == "|" {
					continue
				}
				conn := docConnection(t, s, text)
				want := strings.Contains(" "+tt.allowed+" ", " "+text+" ")
				v := Evaluate(s, conn)
				if v.Allowed != want {
					t.Errorf("%s: allowed is %t, want %t (%s)", text, v.Allowed, want, v.Reason)
				}
				if got := prog.allows(conn.Direction, conn.Pod, conn.Peer, conn.Protocol, conn.Port); got != want {
					t.Errorf("%s: the compiled form allows: %t, want %t", text, got, want)
				}
			}
		})
	}
}

func docConnection(t *testing.T, s State, text string) Connection {
	t.Helper()
	c := Connection{Pod: api.Key{Namespace: "default", Name: "db"}}
	if text[0] == '>' {
		c.Direction = Egress
	}
	peer, port, _ := strings.Cut(text[1:], ":")
	if namespace, name, isPod := strings.Cut(peer, "/"); isPod {
		c.Peer = s.Endpoints[api.Key{Namespace: namespace, Name: name}].Addrs[0]
	} else {
		c.Peer = netip.MustParseAddr(peer)
	}
	proto, number, _ := strings.Cut(port, "/")
	c.Protocol = map[string]uint8{"tcp": TCP, "udp": UDP, "sctp": SCTP, "icmp": 1}[proto]
	if number != "" {
		if _, err := fmt.Sscan(number, &c.Port); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Verdicts say who decided, in words.
func TestReasons(t *testing.T) {
	s := docState()
	for name, spec := range map[string]string{
		"access": `{podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{port: 80}]}]}`,
		"closed": `{podSelector: {}}`,
		"office": `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.7/32]}}, {podSelector: {}, namespaceSelector: {matchLabels: {project: myproject}}}]}]}`,
	} {
		np := &networkingv1.NetworkPolicy{}
		np.Namespace, np.Name = "default", name
		if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
			t.Fatal(err)
		}
		p, err := Parse(np)
		if err != nil {
			t.Fatal(err)
		}
		s.Policies[p.Key] = p
	}
	for text, want := range map[string]string{
		"<default/frontend:tcp/80": "allowed by default/access ingress rule 1 (from role=frontend)",
		"<default/frontend:tcp/81": "denied: default/access ingress rule 1 allows this peer, but not port tcp/81",
		"<default/frontend:icmp":   "denied: default/access ingress rule 1 allows this peer, but not port protocol 1",
		"<default/other:tcp/80":    "denied: policies default/access, default/closed, default/office select the pod and no rule allows this peer",
		"<192.0.2.1:tcp/80":        "allowed by default/office ingress rule 1 (from 192.0.2.0/24 except 192.0.2.7/32 or all pods in namespaces project=myproject)",
		">default/other:tcp/80":    "allowed: no policy selects the pod for egress",
	} {
		if got := Evaluate(s, docConnection(t, s, text)).Reason; got != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}

	v := Evaluate(s, docConnection(t, s, "<default/frontend:tcp/80"))
	if !v.Isolated || v.Policy.Name != "access" || v.Rule != 0 || len(v.Considered) != 3 || v.Considered[2].Rules[0] != (RuleMatch{Port: true}) {
		t.Errorf("got %+v", v)
	}
	if v := Evaluate(s, docConnection(t, s, "<default/db:tcp/80")); !v.Allowed || v.Reason != "allowed: a pod can't block access to itself" {
		t.Errorf("from itself: %+v", v)
	}
	conn := docConnection(t, s, "<default/other:tcp/80")
	conn.FromOwnNode = true
	if v := Evaluate(s, conn); !v.Allowed || v.Rule != -1 || v.Reason != "allowed: the peer is the pod's own node" {
		t.Errorf("from its own node: %+v", v)
	}
}
