package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

func describePod(ctx context.Context, st store.Store, p *page, pod *api.WorkloadEndpoint) error {
	p.list("Addresses", podAddresses(pod))
	p.field("Node", pod.Spec.Node)
	p.field("Container", pod.Spec.ContainerID)
	p.field("Interface", pod.Spec.Endpoint)
	p.field("On the node", pod.Spec.InterfaceName)
	p.field("MAC", pod.Spec.MAC)
	var ports []string
	for _, port := range pod.Spec.Ports {
		text := fmt.Sprintf("%d/%s", port.Port, port.Protocol)
		if port.Name != "" {
			text = port.Name + " " + text
		}
		if port.HostPort != 0 {
			text += fmt.Sprintf(", port %d of the node", port.HostPort)
		}
		ports = append(ports, text)
	}
	p.list("Ports", ports)
	services, err := servicesOf(ctx, st, pod)
	if err != nil {
		return err
	}
	p.list("Services", services)
	return describePoliciesOf(ctx, st, p, pod)
}

// describePoliciesOf names the policies that select the pod; a direction that
// none restricts is open.
func describePoliciesOf(ctx context.Context, st store.Store, p *page, pod *api.WorkloadEndpoint) error {
	policies, err := listOf[*networkingv1.NetworkPolicy](ctx, st, api.NetworkPolicyKind, pod.Namespace)
	if err != nil {
		return err
	}
	for _, direction := range []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress} {
		var names []string
		for _, policy := range policies {
			if slices.Contains(policy.Spec.PolicyTypes, direction) && selectsPod(policy, pod) {
				names = append(names, policy.Name)
			}
		}
		if names == nil {
			names = []string{"no policy: everything is allowed"}
		}
		p.list(string(direction), names)
	}
	return nil
}

// servicesOf are the services with an endpoint at one of the pod's addresses.
func servicesOf(ctx context.Context, st store.Store, pod *api.WorkloadEndpoint) ([]string, error) {
	addresses := map[netip.Addr]bool{}
	for _, text := range pod.Spec.IPNetworks {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			addresses[prefix.Addr()] = true
		}
	}
	all, err := listOf[*discoveryv1.EndpointSlice](ctx, st, api.EndpointSliceKind, pod.Namespace)
	var names []string
	for _, slice := range all {
		name := slice.Labels[discoveryv1.LabelServiceName]
		if name != "" && usesAddress(slice, addresses) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), err
}
