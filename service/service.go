// Package service turns Services and EndpointSlices into front ends: which
// address and port is balanced to which endpoints, for whom, and what becomes
// of a packet when there are none.
//
// It never writes a rule, knows no kernel and keeps no state: the same objects
// give the same front ends, in whichever order they are handed over.
package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"github.com/twill-net/twill/api"
)

// Labels that leave a Service or an EndpointSlice to another program.
const (
	labelProxyName = "service.kubernetes.io/service-proxy-name"
	labelHeadless  = corev1.IsHeadlessService
)

// IP protocol numbers of the protocols that a Service may have.
const (
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

// Service is what balancing needs of a Service: small, and parsed.
type Service struct {
	Key     api.Key
	Created time.Time // settles who keeps an address that two Services claim

	ClusterIPs      []netip.Addr
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr // of ingress points that deliver to the address itself
	SourceRanges    []netip.Prefix
	Ports           []Port

	InternalLocal bool          // internalTrafficPolicy: Local
	ExternalLocal bool          // externalTrafficPolicy: Local
	Affinity      time.Duration // sessionAffinity: ClientIP; 0: none
	// HealthCheckPort is where load balancers ask whether a node has endpoints;
	// 0: nowhere.
	HealthCheckPort uint16

	// Problems say what of the Service is not done, a sentence each.
	Problems []string
}

// Port is one port of a Service.
type Port struct {
	Name     string
	Protocol uint8
	Port     uint16
	NodePort uint16 // 0: none
}

// Parse takes from a Service what balancing needs. It returns nil for a
// Service that is not ours to balance: headless, ExternalName, or another
// proxy's. The Service is not kept.
func Parse(svc *corev1.Service) *Service {
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	if leftToOthers(svc.Labels) {
		return nil
	}
	s := &Service{Key: api.KeyOf(svc), Created: svc.CreationTimestamp.Time}
	s.parseAddresses(svc)
	s.parsePolicies(svc)
	for _, p := range svc.Spec.Ports {
		protocol, ok := ParseProtocol(p.Protocol)
		if !ok || p.Port < 1 || p.Port > 65535 || p.NodePort < 0 || p.NodePort > 65535 {
			s.problem("port %q (%d/%s, node port %d) is not a port that can be balanced", p.Name, p.Port, p.Protocol, p.NodePort)
			continue
		}
		s.Ports = append(s.Ports, Port{strings.Clone(p.Name), protocol, uint16(p.Port), uint16(p.NodePort)})
	}
	if n := svc.Spec.HealthCheckNodePort; s.ExternalLocal && svc.Spec.Type == corev1.ServiceTypeLoadBalancer && n > 0 && n <= 65535 {
		s.HealthCheckPort = uint16(n)
	}
	return s
}

// leftToOthers says whether a Service or EndpointSlice has a label, of whatever
// value, by which another program serves it.
func leftToOthers(labels map[string]string) bool {
	_, proxy := labels[labelProxyName]
	_, headless := labels[labelHeadless]
	return proxy || headless
}

func (s *Service) parseAddresses(svc *corev1.Service) {
	clusterIPs := svc.Spec.ClusterIPs
	if len(clusterIPs) == 0 {
		clusterIPs = []string{svc.Spec.ClusterIP}
	}
	s.ClusterIPs = s.parseAddrs("clusterIPs", clusterIPs)
	s.ExternalIPs = s.ofFamilies("externalIPs", s.parseAddrs("externalIPs", svc.Spec.ExternalIPs))
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	var ingress []string
	for _, in := range svc.Status.LoadBalancer.Ingress {
		// A load balancer in mode Proxy wants in-cluster clients to pass
		// through it too, and delivers to the node port.
		if in.IP != "" && (in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP) {
			ingress = append(ingress, in.IP)
		}
	}
	s.LoadBalancerIPs = s.ofFamilies("status.loadBalancer.ingress", s.parseAddrs("status.loadBalancer.ingress", ingress))
	for _, text := range svc.Spec.LoadBalancerSourceRanges {
		// The Kubernetes API tolerates blanks and leading zeros here.
		if _, n, err := netutils.ParseCIDRSloppy(strings.TrimSpace(text)); err == nil {
			ones, _ := n.Mask.Size()
			addr, _ := netip.AddrFromSlice(n.IP)
			s.SourceRanges = append(s.SourceRanges, netip.PrefixFrom(addr, ones))
		} else {
			s.problem("loadBalancerSourceRanges: %q is not a prefix; nobody is let in by it", text)
			// An invalid prefix contains nothing: it keeps the list from
			// becoming empty, which would let everybody in.
			s.SourceRanges = append(s.SourceRanges, netip.Prefix{})
		}
	}
}

// ofFamilies returns those addresses whose family the Service has. An address of
// another family has no endpoints by right, and may belong to another host.
func (s *Service) ofFamilies(field string, addrs []netip.Addr) (out []netip.Addr) {
	for _, a := range addrs {
		if s.hasFamily(a.Is4()) {
			out = append(out, a)
			continue
		}
		s.problem("%s: the service has no cluster IP of the family of %s; add the family to ipFamilies, or remove the address", field, a)
	}
	return out
}

func (s *Service) parsePolicies(svc *corev1.Service) {
	switch p := svc.Spec.InternalTrafficPolicy; {
	case p == nil || *p == "" || *p == corev1.ServiceInternalTrafficPolicyCluster:
	case *p == corev1.ServiceInternalTrafficPolicyLocal:
		s.InternalLocal = true
	default:
		s.problem("internalTrafficPolicy %q is unknown; Cluster is done", *p)
	}
	switch p := svc.Spec.ExternalTrafficPolicy; p {
	case "", corev1.ServiceExternalTrafficPolicyCluster:
	case corev1.ServiceExternalTrafficPolicyLocal:
		s.ExternalLocal = true
	default:
		s.problem("externalTrafficPolicy %q is unknown; Cluster is done", p)
	}
	switch a := svc.Spec.SessionAffinity; a {
	case "", corev1.ServiceAffinityNone:
	case corev1.ServiceAffinityClientIP:
		s.Affinity = time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
		if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil && *c.ClientIP.TimeoutSeconds > 0 {
			s.Affinity = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	default:
		s.problem("sessionAffinity %q is unknown; None is done", a)
	}
}

func (s *Service) problem(format string, args ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

func (s *Service) parseAddrs(field string, texts []string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		a, ok := parseAddr(text)
		if !ok {
			s.problem("%s: %q is not an address", field, text)
			continue
		}
		if a.IsUnspecified() { // to the planner it means every address
			s.problem("%s: %s is not the address of a host", field, text)
			continue
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// parseAddr parses an address as the Kubernetes API does: stored objects may
// hold IPv4 addresses with leading zeros, which are decimal.
func parseAddr(text string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	return a.Unmap(), ok
}

// ParseProtocol returns the IP protocol number of a Kubernetes protocol;
// empty is TCP.
func ParseProtocol(p corev1.Protocol) (number uint8, ok bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}
