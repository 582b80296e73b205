package agent

import (
	"encoding/json"
	"maps"
	"net/netip"
	"runtime"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/ipam"
)

// publishNodeOnChange brings the node's object up to date: its addresses, what
// it receives, and what is wrong with it. Where others say what the node's address
// is, nothing is told before they have. It runs on the loop.
func (a *Agent) publishNodeOnChange() {
	if a.publisher.orchestrated && !a.underlay.known {
		return
	}
	receives, serves, underlay, wants := a.planner.Receives(), a.serves, a.underlay.found, a.addresses.wanted()
	claim, known := a.addressClaim()
	a.publisher.publishNode(func(n *corev1.Node) {
		a.describeNode(n, receives, serves, underlay)
		api.SetNodeWants(n, wants)
		if known {
			api.SetNodeAddressClaim(n, claim)
		}
	})
}

// rangesOf are the ranges of which the pods of this node get addresses. What can't
// be read is left out: the API server validates it.
func (a *Agent) rangesOf(n *corev1.Node) ipam.Ranges {
	r := ipam.Ranges{Only: a.config.Addresses == AddressesOfNode}
	if a.config.Addresses == AddressesOfPools {
		return r
	}
	for _, text := range n.Spec.PodCIDRs {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			r.Prefixes = append(r.Prefixes, prefix)
		}
	}
	return r
}

func (a *Agent) describeNode(n *corev1.Node, receives api.Receives, serves bool, underlay fabric.Underlay) {
	n.Annotations = maps.Clone(n.Annotations)
	if n.Annotations == nil {
		n.Annotations = map[string]string{}
	}
	n.Annotations[api.ReceivesAnnotation] = mustJSON(receives)
	n.Annotations[api.UnderlayAnnotation] = mustJSON(underlay)
	delete(n.Annotations, api.ServicesAnnotation)
	if !serves {
		n.Annotations[api.ServicesAnnotation] = "off"
	}
	n.Status.Conditions = nodeConditions(n.Status.Conditions, a.health.Conditions())
	if a.publisher.orchestrated {
		if a.carries.Load() {
			n.Status.Conditions = networkIsUp(n.Status.Conditions)
		}
		return // the rest is the kubelet's
	}
	n.Labels = maps.Clone(n.Labels)
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelHostname] = n.Name
	n.Status.Capacity = corev1.ResourceList{corev1.ResourceCPU: *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI)}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.Name}}
	for _, p := range underlay.Prefixes {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: p.Addr().String()})
	}
}

// mustJSON marshals values of our own types, which can't fail.
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// nodeConditions replaces our conditions among those of the node. One of ours
// stands for all of a code; its message lists the subjects.
func nodeConditions(old []corev1.NodeCondition, current []health.Condition) []corev1.NodeCondition {
	var out []corev1.NodeCondition
	since := map[corev1.NodeConditionType]metav1.Time{}
	for _, c := range old {
		if strings.HasPrefix(string(c.Type), api.ConditionPrefix) {
			since[c.Type] = c.LastTransitionTime
		} else {
			out = append(out, c)
		}
	}
	byCode := map[health.Code][]health.Condition{}
	var codes []health.Code
	for _, c := range current {
		if byCode[c.Code] == nil {
			codes = append(codes, c.Code)
		}
		byCode[c.Code] = append(byCode[c.Code], c)
	}
	for _, code := range codes {
		t := corev1.NodeConditionType(api.ConditionPrefix + string(code))
		when, ok := since[t]
		if !ok {
			when = metav1.NewTime(time.Now().Truncate(time.Second))
		}
		out = append(out, corev1.NodeCondition{
			Type: t, Status: corev1.ConditionTrue, Reason: string(code),
			Message: health.Message(byCode[code]), LastTransitionTime: when,
		})
	}
	return out
}
