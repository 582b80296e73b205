package kube

import (
	"fmt"
	"net/netip"

	json "github.com/go-json-experiment/json/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/twill-net/twill/api"
)

// decodePod reads a Pod as the endpoint that it is, or as nil if it is none: one
// of the host's network, or one that has ended and gave its addresses back.
//
// Of the container's id, the interfaces and the MAC the API server knows
// nothing: they are the node's own business. An endpoint without an address is
// one whose pod is being started.
func decodePod(raw []byte) (api.Object, error) {
	var p pod
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, fmt.Errorf("not a Pod: %w", err)
	}
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil, nil
	}
	w := api.WorkloadEndpointKind.New().(*api.WorkloadEndpoint)
	w.Namespace, w.Name, w.UID = p.Metadata.Namespace, p.Metadata.Name, types.UID(p.Metadata.UID)
	w.ResourceVersion, w.CreationTimestamp, w.Labels = p.Metadata.ResourceVersion, p.Metadata.CreationTimestamp, p.Metadata.Labels
	w.Spec = api.WorkloadEndpointSpec{Node: p.Spec.NodeName, Pod: p.Metadata.Name, IPNetworks: p.networks(), Ports: p.ports()}
	return w, nil
}

// networks are the pod's addresses. What is none of a pod's is the kubelet's
// mistake, and no reason to leave out the others.
func (p *pod) networks() []string {
	addresses := p.Status.PodIPs
	if len(addresses) == 0 {
		addresses = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	var out []string
	for _, a := range addresses {
		if ip, err := netip.ParseAddr(a.IP); err == nil {
			ip = ip.Unmap()
			out = append(out, netip.PrefixFrom(ip, ip.BitLen()).String())
		}
	}
	return out
}

// ports are those with a name or a port of the host, of containers that run as
// long as the pod does.
func (p *pod) ports() []api.WorkloadEndpointPort {
	var out []api.WorkloadEndpointPort
	add := func(c container) {
		for _, port := range c.Ports {
			if port.Name != "" || port.HostPort != 0 {
				out = append(out, api.WorkloadEndpointPort{
					Name: port.Name, Protocol: port.Protocol, Port: port.ContainerPort, HostPort: port.HostPort, HostIP: port.HostIP,
				})
			}
		}
	}
	for _, c := range p.Spec.Containers {
		add(c)
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c) // a sidecar
		}
	}
	return out
}
