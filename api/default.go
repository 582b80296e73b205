package api

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Defaults that others need too.
const (
	DefaultVNI             = 1     // as flannel's
	DefaultVXLANPort       = 8472  // UDP, as flannel's
	DefaultAffinitySeconds = 10800 // how long ClientIP affinity lasts: three hours
	DefaultBlockSize4      = 26    // prefix length of an IPv4 pool's blocks
	DefaultBlockSize6      = 122   // prefix length of an IPv6 pool's blocks
)

// Default fills what the user left open, as the API server does for
// Kubernetes' kinds. It changes obj, and nothing when called again.
func Default(obj Object) {
	switch o := obj.(type) {
	case *corev1.Namespace:
		// A policy selects a namespace by its name through this label.
		if _, ok := o.Labels[corev1.LabelMetadataName]; !ok && o.Name != "" {
			if o.Labels == nil {
				o.Labels = map[string]string{}
			}
			o.Labels[corev1.LabelMetadataName] = o.Name
		}
	case *corev1.Service:
		defaultService(&o.Spec)
	case *discoveryv1.EndpointSlice:
		for i := range o.Ports {
			if o.Ports[i].Name == nil {
				o.Ports[i].Name = new(string)
			}
			if o.Ports[i].Protocol == nil {
				o.Ports[i].Protocol = pointer(corev1.ProtocolTCP)
			}
		}
	case *networkingv1.NetworkPolicy:
		defaultNetworkPolicy(&o.Spec)
	case *IPPool:
		defaultIPPool(&o.Spec)
	case *WorkloadEndpoint:
		for i := range o.Spec.Ports {
			if o.Spec.Ports[i].Protocol == "" {
				o.Spec.Ports[i].Protocol = corev1.ProtocolTCP
			}
		}
	case *FabricConfiguration:
		defaultFabric(&o.Spec)
	}
}

func pointer[T any](v T) *T { return &v }

func defaultService(s *corev1.ServiceSpec) {
	if s.Type == "" {
		s.Type = corev1.ServiceTypeClusterIP
	}
	if s.SessionAffinity == "" {
		s.SessionAffinity = corev1.ServiceAffinityNone
	}
	if s.SessionAffinity == corev1.ServiceAffinityClientIP {
		if s.SessionAffinityConfig == nil {
			s.SessionAffinityConfig = &corev1.SessionAffinityConfig{}
		}
		if s.SessionAffinityConfig.ClientIP == nil {
			s.SessionAffinityConfig.ClientIP = &corev1.ClientIPConfig{}
		}
		if s.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil {
			s.SessionAffinityConfig.ClientIP.TimeoutSeconds = pointer(int32(DefaultAffinitySeconds))
		}
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if s.InternalTrafficPolicy == nil && s.Type != corev1.ServiceTypeExternalName {
		s.InternalTrafficPolicy = pointer(corev1.ServiceInternalTrafficPolicyCluster)
	}
	if s.ExternalTrafficPolicy == "" && reachableFromOutside(s) {
		s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
	if s.Type == corev1.ServiceTypeLoadBalancer && s.AllocateLoadBalancerNodePorts == nil {
		s.AllocateLoadBalancerNodePorts = pointer(true)
	}
	if s.ClusterIP != "" && len(s.ClusterIPs) == 0 {
		s.ClusterIPs = []string{s.ClusterIP}
	}
}

// reachableFromOutside says whether a service has addresses or ports for
// clients outside the cluster.
func reachableFromOutside(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer ||
		s.Type == corev1.ServiceTypeClusterIP && len(s.ExternalIPs) > 0
}

func defaultNetworkPolicy(s *networkingv1.NetworkPolicySpec) {
	for i := range s.Ingress {
		defaultPolicyPorts(s.Ingress[i].Ports)
	}
	for i := range s.Egress {
		defaultPolicyPorts(s.Egress[i].Ports)
	}
	if len(s.PolicyTypes) == 0 {
		s.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(s.Egress) > 0 {
			s.PolicyTypes = append(s.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

func defaultPolicyPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		if ports[i].Protocol == nil {
			ports[i].Protocol = pointer(corev1.ProtocolTCP)
		}
	}
}

func defaultIPPool(s *IPPoolSpec) {
	if prefix, err := netip.ParsePrefix(s.CIDR); err == nil && s.BlockSize == 0 {
		s.BlockSize = DefaultBlockSize6
		if prefix.Addr().Is4() {
			s.BlockSize = DefaultBlockSize4
		}
		// A pool smaller than a block is one block.
		s.BlockSize = max(s.BlockSize, prefix.Bits())
	}
	if s.NodeSelector == "" {
		s.NodeSelector = "all()"
	}
}

func defaultFabric(s *FabricConfigurationSpec) {
	if len(s.Preference) == 0 {
		s.Preference = Backends()
	}
	if s.EgressToOwnNode == "" {
		s.EgressToOwnNode = EnforceEgressToOwnNode
	}
	if s.VXLAN == nil {
		s.VXLAN = &VXLANConfiguration{}
	}
	if s.VXLAN.VNI == 0 {
		s.VXLAN.VNI = DefaultVNI
	}
	if s.VXLAN.Port == 0 {
		s.VXLAN.Port = DefaultVXLANPort
	}
}
