package plantest

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
)

func (w *World) networkPolicy() Event {
	p := api.NetworkPolicyKind.New().(*networkingv1.NetworkPolicy)
	p.Namespace, p.Name = w.namespaceName(), pick(w, "p", "q")
	p.Spec.PodSelector = *w.selector()
	for range w.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.policyPorts()})
	}
	for range w.IntN(3) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.policyPorts()})
	}
	p.Spec.PolicyTypes = pick(w, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	if w.odd(5) {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{"Both"}
	}
	return put(p)
}

func (w *World) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if w.chance(40) {
		s.MatchLabels = map[string]string{pick(w, "app", "tier"): pick(w, "x", "y")}
	}
	if w.chance(40) {
		s.MatchExpressions = []metav1.LabelSelectorRequirement{pick(w,
			metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"x", "z"}},
			metav1.LabelSelectorRequirement{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"y"}},
			metav1.LabelSelectorRequirement{Key: "tier", Operator: metav1.LabelSelectorOpExists},
			metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpDoesNotExist})}
	}
	if w.odd(3) {
		s.MatchLabels = map[string]string{"a b": "c"}
	}
	return s
}

func (w *World) peers() (out []networkingv1.NetworkPolicyPeer) {
	for range w.IntN(4) {
		var p networkingv1.NetworkPolicyPeer
		switch w.IntN(4) {
		case 0:
			p.IPBlock = w.ipBlock()
		case 1:
			p.PodSelector = w.selector()
		case 2:
			p.NamespaceSelector = w.selector()
		default:
			p.PodSelector, p.NamespaceSelector = w.selector(), w.selector()
		}
		if w.odd(5) {
			p = networkingv1.NetworkPolicyPeer{}
		}
		out = append(out, p)
	}
	return out
}

func (w *World) ipBlock() *networkingv1.IPBlock {
	a := w.podAddr(w.chance(40))
	prefix := netip.PrefixFrom(a, a.BitLen()-pick(w, 0, 0, 1, 2, 3, 8, a.BitLen())).Masked()
	out := &networkingv1.IPBlock{CIDR: prefix.String()}
	for range w.IntN(3) {
		except := netip.PrefixFrom(w.podAddr(a.Is6()), min(a.BitLen(), prefix.Bits()+w.IntN(6)))
		if prefix.Contains(except.Addr()) {
			out.Except = append(out.Except, except.Masked().String())
		}
	}
	if w.odd(5) {
		out.CIDR = fmt.Sprintf("10.0.0.0/%d", 33)
	}
	return out
}

func (w *World) policyPorts() (out []networkingv1.NetworkPolicyPort) {
	for range w.IntN(4) {
		var p networkingv1.NetworkPolicyPort
		if w.chance(70) {
			protocol := pick(w, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
			p.Protocol = &protocol
		}
		switch w.IntN(4) {
		case 0:
		case 1:
			p.Port = &intstr.IntOrString{Type: intstr.String, StrVal: pick(w, "http", "dns")}
		default:
			p.Port = &intstr.IntOrString{IntVal: pick[int32](w, 53, 80, 81, 65535)}
			if w.chance(40) {
				end := pick(w, p.Port.IntVal, max(p.Port.IntVal, 81), 65535)
				p.EndPort = &end
			}
		}
		if w.odd(5) {
			end := int32(1)
			p.EndPort = &end
		}
		out = append(out, p)
	}
	return out
}
