package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

func describePolicy(ctx context.Context, st store.Store, p *page, policy *networkingv1.NetworkPolicy) error {
	pods, err := listOf[*api.WorkloadEndpoint](ctx, st, api.WorkloadEndpointKind, policy.Namespace)
	if err != nil {
		return err
	}
	var selected []string
	for _, pod := range pods {
		if selectsPod(policy, pod) {
			selected = append(selected, pod.Name)
		}
	}
	p.field("Pod selector", selectorText(&policy.Spec.PodSelector))
	p.list("Selected pods", selected)
	directions := map[networkingv1.PolicyType]bool{}
	for _, t := range policy.Spec.PolicyTypes {
		directions[t] = true
	}
	p.line("")
	if directions[networkingv1.PolicyTypeIngress] {
		describeRules(p, "Ingress to these pods", "from", ingressRules(policy))
	} else {
		p.line("Ingress to these pods is not restricted by this policy.")
	}
	if directions[networkingv1.PolicyTypeEgress] {
		describeRules(p, "Egress from these pods", "to", egressRules(policy))
	} else {
		p.line("Egress from these pods is not restricted by this policy.")
	}
	return nil
}

func selectsPod(policy *networkingv1.NetworkPolicy, pod *api.WorkloadEndpoint) bool {
	selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
	return err == nil && policy.Namespace == pod.Namespace && selector.Matches(labels.Set(pod.Labels))
}

type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func ingressRules(policy *networkingv1.NetworkPolicy) []rule {
	var rules []rule
	for _, r := range policy.Spec.Ingress {
		rules = append(rules, rule{r.From, r.Ports})
	}
	return rules
}

func egressRules(policy *networkingv1.NetworkPolicy) []rule {
	var rules []rule
	for _, r := range policy.Spec.Egress {
		rules = append(rules, rule{r.To, r.Ports})
	}
	return rules
}

func describeRules(p *page, title, direction string, rules []rule) {
	if len(rules) == 0 {
		p.line(title + " is refused, unless another policy allows it.")
		return
	}
	p.line(title + " is allowed only:")
	for i, r := range rules {
		var ports []string
		for _, port := range r.ports {
			ports = append(ports, portText(port))
		}
		on := "on every port"
		if len(ports) > 0 {
			on = "on " + strings.Join(ports, ", ")
		}
		if len(r.peers) == 0 {
			p.line(fmt.Sprintf("  %d. %s %s anywhere", i+1, on, direction))
			continue
		}
		p.line(fmt.Sprintf("  %d. %s %s", i+1, on, direction))
		for _, peer := range r.peers {
			p.line("       - " + peerText(peer))
		}
	}
}

func portText(port networkingv1.NetworkPolicyPort) string {
	protocol := "TCP"
	if port.Protocol != nil {
		protocol = string(*port.Protocol)
	}
	switch {
	case port.Port == nil:
		return "every port/" + protocol
	case port.EndPort != nil:
		return port.Port.String() + "-" + strconv.Itoa(int(*port.EndPort)) + "/" + protocol
	}
	return port.Port.String() + "/" + protocol
}

func peerText(peer networkingv1.NetworkPolicyPeer) string {
	if b := peer.IPBlock; b != nil {
		if len(b.Except) > 0 {
			return "addresses in " + b.CIDR + " except " + strings.Join(b.Except, ", ")
		}
		return "addresses in " + b.CIDR
	}
	pods := "every pod"
	if peer.PodSelector != nil && !isEmptySelector(peer.PodSelector) {
		pods = "pods with " + selectorText(peer.PodSelector)
	}
	switch {
	case peer.NamespaceSelector == nil:
		return pods + " of this namespace"
	case isEmptySelector(peer.NamespaceSelector):
		return pods + " of every namespace"
	}
	return pods + " of namespaces with " + selectorText(peer.NamespaceSelector)
}

func isEmptySelector(s *metav1.LabelSelector) bool {
	return len(s.MatchLabels)+len(s.MatchExpressions) == 0
}

func selectorText(s *metav1.LabelSelector) string {
	if isEmptySelector(s) {
		return "every pod of the namespace"
	}
	return metav1.FormatLabelSelector(s)
}
