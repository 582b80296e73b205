package cli

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
)

// forCreation is the object without what only a stored one has, so that what
// "get -o yaml" printed can be created again.
func forCreation(desired api.Object) api.Object {
	out := desired.DeepCopyObject().(api.Object)
	out.SetUID("")
	out.SetResourceVersion("")
	out.SetGeneration(0)
	out.SetCreationTimestamp(metav1.Time{})
	return out
}

// merge is the desired object with what its author does not own taken from the
// stored one.
func merge(desired, stored api.Object) api.Object {
	out := desired.DeepCopyObject().(api.Object)
	if out.GetUID() == "" { // else it must be the stored one's
		out.SetUID(stored.GetUID())
	}
	out.SetResourceVersion(stored.GetResourceVersion())
	out.SetGeneration(stored.GetGeneration())
	out.SetCreationTimestamp(stored.GetCreationTimestamp())
	out.SetFinalizers(stored.GetFinalizers())
	out.SetManagedFields(stored.GetManagedFields())
	if len(out.GetOwnerReferences()) == 0 {
		out.SetOwnerReferences(stored.GetOwnerReferences())
	}
	out.SetLabels(mergeKeys(out.GetLabels(), stored.GetLabels()))
	out.SetAnnotations(mergeKeys(out.GetAnnotations(), stored.GetAnnotations()))
	switch o := out.(type) {
	case *corev1.Namespace:
		o.Status = stored.(*corev1.Namespace).Status
	case *corev1.Node:
		mergeNode(o, stored.(*corev1.Node))
	case *corev1.Service:
		mergeService(o, stored.(*corev1.Service))
	}
	return out
}

// mergeKeys keeps stored labels or annotations that others own.
func mergeKeys(desired, stored map[string]string) map[string]string {
	for key, value := range stored {
		if _, ok := desired[key]; ok || !ownedByOthers(key) {
			continue
		}
		if desired == nil {
			desired = map[string]string{}
		}
		desired[key] = value
	}
	return desired
}

// mergeNode: agents report a node's status; only where a file gives addresses
// itself, as for a node without an agent, these count.
func mergeNode(n, stored *corev1.Node) {
	addresses := n.Status.Addresses
	n.Status = *stored.Status.DeepCopy()
	if len(addresses) > 0 {
		n.Status.Addresses = addresses
	}
	if n.Spec.PodCIDR == "" && len(n.Spec.PodCIDRs) == 0 {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = stored.Spec.PodCIDR, stored.Spec.PodCIDRs
	}
}

// mergeService keeps what the controller gave: addresses, families, node ports.
func mergeService(s, stored *corev1.Service) {
	s.Status = stored.Status
	spec, old := &s.Spec, &stored.Spec
	if spec.Type == corev1.ServiceTypeExternalName || old.Type == corev1.ServiceTypeExternalName {
		return
	}
	if spec.ClusterIP == "" {
		spec.ClusterIP = old.ClusterIP
	}
	single := spec.IPFamilyPolicy != nil && *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
	if spec.ClusterIP == old.ClusterIP && len(spec.ClusterIPs) <= 1 && !single {
		spec.ClusterIPs = old.ClusterIPs
	} else if len(spec.ClusterIPs) == 0 && spec.ClusterIP != "" {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = old.IPFamilies
		if single && len(spec.IPFamilies) > 1 {
			spec.IPFamilies = spec.IPFamilies[:1]
		}
	}
	if spec.IPFamilyPolicy == nil {
		spec.IPFamilyPolicy = old.IPFamilyPolicy
	}
	if spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer {
		keepNodePorts(spec.Ports, old.Ports)
	}
	if spec.HealthCheckNodePort == 0 && spec.Type == corev1.ServiceTypeLoadBalancer &&
		spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		spec.HealthCheckNodePort = old.HealthCheckNodePort
	}
}

// keepNodePorts gives ports without a node port the one that they have in the
// store, unless another port now asks for it.
func keepNodePorts(ports, stored []corev1.ServicePort) {
	type number struct {
		protocol corev1.Protocol
		port     int32
	}
	given, asked := map[number]int32{}, map[number]bool{}
	for _, p := range stored {
		given[number{p.Protocol, p.Port}] = p.NodePort
	}
	for _, p := range ports {
		asked[number{p.Protocol, p.NodePort}] = true
	}
	for i, p := range ports {
		if nodePort := given[number{p.Protocol, p.Port}]; p.NodePort == 0 && !asked[number{p.Protocol, nodePort}] {
			ports[i].NodePort = nodePort
		}
	}
}
