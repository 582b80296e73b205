package cli

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

func describeService(ctx context.Context, st store.Store, p *page, s *corev1.Service) error {
	p.field("Selector", formatLabels(s.Spec.Selector))
	p.field("Type", string(s.Spec.Type))
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		p.field("External name", s.Spec.ExternalName+" (resolved by DNS; nothing is programmed)")
		return nil
	}
	p.field("Addresses", strings.Join(clusterIPs(s), ", "))
	p.field("External", externalAddresses(s))
	p.field("Affinity", affinityText(s))
	p.field("Policy inside", policyText(s.Spec.InternalTrafficPolicy))
	if s.Spec.ExternalTrafficPolicy != "" {
		p.field("Policy outside", policyText(&s.Spec.ExternalTrafficPolicy))
	}
	for _, c := range s.Status.Conditions {
		p.field("Condition", fmt.Sprintf("%s %s: %s", c.Type, c.Status, c.Message))
	}
	slices, err := serviceSlices(ctx, st, s.Namespace, s.Name)
	if err != nil {
		return err
	}
	p.line("")
	ports := &table{columns: []string{"PORT", "NAME", "NODE PORT", "TARGET"}}
	for _, port := range s.Spec.Ports {
		nodePort := ""
		if port.NodePort != 0 {
			nodePort = strconv.Itoa(int(port.NodePort))
		}
		ports.add(fmt.Sprintf("%d/%s", port.Port, port.Protocol), orNone(port.Name), orNone(nodePort), port.TargetPort.String())
	}
	p.rows("Ports", ports)
	endpoints := &table{columns: []string{"ADDRESS", "PORT", "STATE", "NODE", "POD"}}
	for _, slice := range slices {
		for _, e := range slice.Endpoints {
			addEndpoint(endpoints, slice, &e)
		}
	}
	p.rows("Endpoints", endpoints)
	return nil
}

func addEndpoint(t *table, slice *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) {
	var ports []string
	for _, port := range slice.Ports {
		if port.Port != nil && port.Protocol != nil {
			ports = append(ports, fmt.Sprintf("%d/%s", *port.Port, *port.Protocol))
		}
	}
	node, pod := "", ""
	if e.NodeName != nil {
		node = *e.NodeName
	}
	if e.TargetRef != nil {
		pod = e.TargetRef.Name
	}
	for _, address := range e.Addresses {
		t.add(address, orNone(firstFew(ports, 3)), endpointState(e.Conditions), orNone(node), orNone(pod))
	}
}

// endpointState: a missing condition means ready, and serving as ready.
func endpointState(c discoveryv1.EndpointConditions) string {
	ready := c.Ready == nil || *c.Ready
	serving := ready
	if c.Serving != nil {
		serving = *c.Serving
	}
	terminating := c.Terminating != nil && *c.Terminating
	switch {
	case terminating && serving:
		return "terminating, serving"
	case terminating:
		return "terminating"
	case ready:
		return "ready"
	}
	return "not ready"
}

func serviceSlices(ctx context.Context, st store.Store, namespace, service string) ([]*discoveryv1.EndpointSlice, error) {
	all, err := listOf[*discoveryv1.EndpointSlice](ctx, st, api.EndpointSliceKind, namespace)
	var own []*discoveryv1.EndpointSlice
	for _, slice := range all {
		if slice.Labels[discoveryv1.LabelServiceName] == service {
			own = append(own, slice)
		}
	}
	return own, err
}

func clusterIPs(s *corev1.Service) []string {
	if len(s.Spec.ClusterIPs) > 0 {
		return s.Spec.ClusterIPs
	}
	if s.Spec.ClusterIP != "" {
		return []string{s.Spec.ClusterIP}
	}
	return nil
}

func affinityText(s *corev1.Service) string {
	c := s.Spec.SessionAffinityConfig
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP || c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return string(s.Spec.SessionAffinity)
	}
	return fmt.Sprintf("a client keeps its endpoint for %d s", *c.ClientIP.TimeoutSeconds)
}

func policyText[T ~string](policy *T) string {
	switch {
	case policy == nil:
		return ""
	case string(*policy) == "Local":
		return "Local: only endpoints on the node where the packet is"
	}
	return "Cluster: endpoints on every node"
}

// usesAddress says whether a slice holds one of the addresses.
func usesAddress(slice *discoveryv1.EndpointSlice, addresses map[netip.Addr]bool) bool {
	for _, e := range slice.Endpoints {
		for _, text := range e.Addresses {
			if ip, err := netip.ParseAddr(text); err == nil && addresses[ip] {
				return true
			}
		}
	}
	return false
}
