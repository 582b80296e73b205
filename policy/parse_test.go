package policy

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

func parseSpec(t *testing.T, spec string) (*Policy, error) {
	t.Helper()
	np := &networkingv1.NetworkPolicy{}
	np.Namespace, np.Name = "ns", "p"
	if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
		t.Fatal(err)
	}
	return Parse(np)
}

func TestParseDefaults(t *testing.T) {
	for spec, want := range map[string][2]bool{
		`{}`:                                        {true, false},
		`{ingress: [{}]}`:                           {true, false},
		`{egress: [{}]}`:                            {true, true},
		`{egress: []}`:                              {true, false},
		`{policyTypes: [Egress], ingress: [{}]}`:    {false, true},
		`{policyTypes: [Ingress], egress: [{}]}`:    {true, false},
		`{policyTypes: [Egress, Egress, Ingress]}`:  {true, true},
		`{policyTypes: [Ingress], ingress: [null]}`: {true, false},
	} {
		p, err := parseSpec(t, spec)
		if err != nil || p.Isolates != want {
			t.Errorf("%s: isolates %v (%v), want %v", spec, p.Isolates, err, want)
		}
	}
}

func TestParseRules(t *testing.T) {
	p, err := parseSpec(t, `
podSelector: {matchExpressions: [{key: b, operator: Exists}, {key: a, operator: In, values: [z, x, z]}]}
ingress:
- {}
- from: [{ipBlock: {cidr: 10.1.2.3/8, except: ["10.9.9.9/16"]}}, {ipBlock: {cidr: "::ffff:10.0.0.0/104"}}]
  ports: [{}, {protocol: UDP}, {protocol: SCTP, port: 5}, {port: 1, endPort: 65535}, {port: web, protocol: UDP}]
- from: [{podSelector: {}}, {namespaceSelector: {}}, {podSelector: {}, namespaceSelector: {matchLabels: {a: b}}}]`)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Pods.String(); got != "a in (x,z),b" {
		t.Errorf("pod selector is %s", got)
	}
	all, prefix := selectorOf(), netip.MustParsePrefix
	want := []Rule{
		{Everyone: true, AllPorts: true},
		{
			Peers: []Peer{{Block: prefix("10.0.0.0/8"), Except: []netip.Prefix{prefix("10.9.0.0/16")}}, {Block: prefix("10.0.0.0/8")}},
			Ports: []Port{{Protocol: TCP, Last: 65535}, {Protocol: UDP, Last: 65535}, {Protocol: SCTP, First: 5, Last: 5}, {Protocol: TCP, First: 1, Last: 65535}, {Protocol: UDP, Name: "web"}},
		},
		{
			AllPorts: true,
			Peers:    []Peer{{Pods: all}, {Pods: all, Namespaces: all}, {Pods: all, Namespaces: selectorOf(requirement{"a", "In", []string{"b"}})}},
		},
	}
	equal := cmp.Comparer(func(a, b *Selector) bool { return a == b || a != nil && b != nil && a.String() == b.String() })
	if diff := cmp.Diff(want, p.Rules[Ingress], equal, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("rules differ (-want +got):\n%s", diff)
	}
}

// Each of these is told with its path, and leaves a policy that allows nothing.
func TestParseErrors(t *testing.T) {
	for spec, want := range map[string]string{
		`{ingress: [{from: [{}]}]}`: "spec.ingress[0].from[0]: a peer needs a podSelector",
		`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}`:                 "spec.ingress[0].from[0]: ipBlock can't be combined",
		`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}`:                                    `spec.ingress[0].from[0].ipBlock.cidr: "10.0.0.0" is not a prefix`,
		`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}]}`:            "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/9 is not inside 10.0.0.0/8",
		`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}]}]}`:             "spec.ingress[0].from[0].ipBlock.except[0]: 0.0.0.0/0 is not inside 10.0.0.0/8",
		`{egress: [{to: [{podSelector: {matchExpressions: [{key: a, operator: Is}]}}]}]}`:       `spec.egress[0].to[0].podSelector.matchExpressions[0]: operator "Is" on "a"`,
		`{egress: [{to: [{namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}]}]}`: `spec.egress[0].to[0].namespaceSelector.matchExpressions[0]: operator In on "a" needs`,
		`{ingress: [{ports: [{protocol: ICMP}]}]}`:                                              `spec.ingress[0].ports[0].protocol: protocol "ICMP" is not one of`,
		`{ingress: [{ports: [{endPort: 80}]}]}`:                                                 "spec.ingress[0].ports[0].endPort: needs a port",
		`{ingress: [{ports: [{port: web, endPort: 80}]}]}`:                                      "spec.ingress[0].ports[0].endPort: a range can't start with",
		`{ingress: [{ports: [{port: 80, endPort: 79}]}]}`:                                       "spec.ingress[0].ports[0].endPort: 79 is smaller than port 80",
		`{ingress: [{ports: [{port: 0}]}]}`:                                                     "spec.ingress[0].ports[0].port: 0-0 is not inside 1-65535",
		`{ingress: [{ports: [{port: ""}]}]}`:                                                    "spec.ingress[0].ports[0].port: the name is empty",
		`{policyTypes: [Both]}`:                                                                 `spec.policyTypes[0]: "Both" is neither`,
	} {
		p, err := parseSpec(t, spec)
		if err == nil || !strings.HasPrefix(err.Error(), "networkpolicy ns/p: "+want) {
			t.Errorf("%s:\n got error %v\nwant %s...", spec, err, want)
			continue
		}
		for d, rules := range p.Rules {
			for _, r := range rules {
				if (r.Everyone || len(r.Peers) > 0) && (r.AllPorts || len(r.Ports) > 0) {
					t.Errorf("%s: still allows %v %+v", spec, Direction(d), r)
				}
			}
		}
	}
	if p, err := parseSpec(t, `{podSelector: {matchLabels: {"a b": c}}}`); p != nil || err == nil || !strings.Contains(err.Error(), "spec.podSelector.matchLabels: label key") {
		t.Errorf("got %v, %v", p, err)
	}
}

func TestNewSelector(t *testing.T) {
	if s, _ := NewSelector(nil); s.Matches(nil) || s.Everything() || s.String() != "!*" {
		t.Errorf("nil: %+v", s)
	}
	if s, _ := NewSelector(&metav1.LabelSelector{}); !s.Matches(nil) || !s.Everything() || s.String() != "*" {
		t.Errorf("empty: %+v", s)
	}
	a, _ := NewSelector(&metav1.LabelSelector{MatchLabels: map[string]string{"a": "1", "b": "2"}})
	b, _ := NewSelector(&metav1.LabelSelector{MatchLabels: map[string]string{"b": "2"}, MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "a", Operator: "In", Values: []string{"1"}}, {Key: "b", Operator: "In", Values: []string{"2", "2"}}}})
	if a.String() != b.String() || a.String() != "a=1,b=2" {
		t.Errorf("%s and %s mean the same", a, b)
	}
}

// Matches, and its twin for the compiler's labels, agree with the selectors of
// Kubernetes.
func TestSelectorAgreesWithKubernetes(t *testing.T) {
	seed := rand.Uint64()
	w := newWorld(seed)
	for range 20_000 {
		ls, have := w.selector(), w.labels()
		ours, err := NewSelector(ls)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		theirs, err := metav1.LabelSelectorAsSelector(ls)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		want := theirs.Matches(labels.Set(have))
		if got := ours.Matches(have); got != want {
			t.Fatalf("seed %d: %s on %v: %t, want %t", seed, ours, have, got, want)
		}
		var compiled []*label
		for _, l := range newLabelSet("ns", have).labels {
			compiled = append(compiled, &l)
		}
		if got := ours.selects(compiled); got != want {
			t.Fatalf("seed %d: %s on compiled %v: %t, want %t", seed, ours, have, got, want)
		}
	}
}
