package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/lab"
)

// world makes random intent for the pods of a cluster.
type world struct {
	*rand.Rand
	*cluster
	pods []pod
}

func pick[T any](w *world, from ...T) T { return from[w.IntN(len(from))] }

func (w *world) chance(percent int) bool { return w.IntN(100) < percent }

// Ports that pods serve on; not all pods serve on all, and names mean different
// ports.
var worldPorts = []uint16{53, 80, 81, 5000, 5001}

// worldPods are two pods of each namespace on each node. Label keys and values
// are few, so that random selectors meet them.
func worldPods(r *rand.Rand) []pod {
	var pods []pod
	for _, namespace := range []string{"a", "b"} {
		for i, node := range []string{"master", "node01", "node02", "node01"} {
			labels := map[string]string{"set": fmt.Sprint(i % 2)}
			for _, key := range []string{"app", "tier"} {
				if r.IntN(100) < 70 {
					labels[key] = []string{"x", "y"}[r.IntN(2)]
				}
			}
			ports := []lab.Port{{Name: "dns", Port: 53}, {Name: "http", Port: 80}, {Port: 81}, {Port: 5000}}
			if r.IntN(2) == 0 {
				ports = []lab.Port{{Name: "http", Port: 5000}, {Name: "dns", Port: 5001}, {Port: 80}, {Port: 53}}
			}
			pods = append(pods, pod{fmt.Sprintf("%s/%d", namespace, i), node, labels, ports})
		}
	}
	return pods
}

// worldServices are Services of both namespaces, by name. Sets 0 and 1 have two
// pods each, of which those of set 1 share a node; nobody is in set 2.
var worldServices = []struct{ name, spec string }{
	{"spread", "type: NodePort\n  selector: {set: '0'}"},
	{"together", "type: NodePort\n  selector: {set: '1'}\n  sessionAffinity: ClientIP"},
	{"local", "type: NodePort\n  selector: {set: '1'}\n  externalTrafficPolicy: Local"},
	{"inner", "selector: {set: '1'}\n  internalTrafficPolicy: Local"},
	{"nobody", "type: NodePort\n  selector: {set: '2'}"},
	{"nobody-local", "type: NodePort\n  selector: {set: '2'}\n  externalTrafficPolicy: Local"},
}

const worldServicePorts = `
  ports:
  - {name: web, port: 80}
  - {name: dns, port: 53, protocol: UDP}
  - {name: odd, port: 81, targetPort: 5000}
  - {name: named, port: 82, targetPort: http}
`

func (w *world) labels() []string {
	var out []string
	for _, key := range []string{"app", "tier"} {
		out = append(out, key+pick(w, "=x", "=y", "-"))
	}
	return out
}

// relabel changes labels of a namespace and of a pod.
func (w *world) relabel(t *testing.T) {
	t.Helper()
	w.twill(t, "", append([]string{"label", "ns", pick(w, "a", "b"), "--overwrite"}, w.labels()...)...)
	namespace, name, _ := strings.Cut(pick(w, w.pods...).name, "/")
	w.twill(t, "", append([]string{"label", "pod", name, "-n", namespace, "--overwrite"}, w.labels()...)...)
}

func (w *world) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if w.chance(30) {
		s.MatchLabels = map[string]string{pick(w, "app", "tier"): pick(w, "x", "y")}
	}
	for range w.IntN(2) {
		e := metav1.LabelSelectorRequirement{Key: pick(w, "app", "tier", "set", "kubernetes.io/metadata.name")}
		e.Operator = pick(w, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = []string{pick(w, "x", "y", "0"), pick(w, "x", "y", "1", "a", "b")}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

// somebody is the address of anything that can be an end of a connection.
func (w *world) somebody() netip.Addr {
	name := pick(w, "outside", "node/master", "node/node01", "node/node02")
	if w.chance(70) {
		name = pick(w, w.pods...).name
	}
	return pick(w, w.addresses[name]...)
}

func (w *world) block() *networkingv1.IPBlock {
	a := w.somebody()
	block := netip.PrefixFrom(a, a.BitLen()-pick(w, 0, 1, 6, 8, 16, a.BitLen())).Masked()
	out := &networkingv1.IPBlock{CIDR: block.String()}
	for range w.IntN(3) {
		b := w.somebody()
		except := netip.PrefixFrom(b, b.BitLen()-pick(w, 0, 0, 1, 6)).Masked()
		if block.Contains(b) && except.Bits() > block.Bits() {
			out.Except = append(out.Except, except.String())
		}
	}
	return out
}

func (w *world) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range w.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch w.IntN(5) {
		case 0, 1:
			p.IPBlock = w.block()
		case 2:
			p.PodSelector = w.selector()
		case 3:
			p.NamespaceSelector = w.selector()
		default:
			p.PodSelector, p.NamespaceSelector = w.selector(), w.selector()
		}
		out = append(out, p)
	}
	return out
}

func (w *world) policyPorts() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range w.IntN(3) {
		var p networkingv1.NetworkPolicyPort
		if w.chance(60) {
			proto := pick(w, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
			p.Protocol = &proto
		}
		switch w.IntN(5) {
		case 0:
		case 1, 2:
			p.Port = &intstr.IntOrString{Type: intstr.String, StrVal: pick(w, "http", "dns", "odd")}
		default:
			p.Port = &intstr.IntOrString{IntVal: int32(pick(w, worldPorts...))}
			if w.chance(40) {
				end := max(p.Port.IntVal, pick(w, int32(80), 81, 5001))
				p.EndPort = &end
			}
		}
		out = append(out, p)
	}
	return out
}

func (w *world) policy(name string) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}}
	np.Name, np.Namespace = name, pick(w, "a", "b")
	np.Spec.PodSelector = *w.selector()
	for range w.IntN(4) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.policyPorts()})
	}
	for range w.IntN(4) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.policyPorts()})
	}
	np.Spec.PolicyTypes = pick(w, nil, nil,
		[]networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	return np
}

// policies are random policies as manifests.
func (w *world) policies(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for i := range 1 + w.IntN(5) {
		text, err := json.Marshal(w.policy(fmt.Sprintf("p%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s\n---\n", text)
	}
	return out.String()
}
