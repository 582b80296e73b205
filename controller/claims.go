package controller

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
)

// resource is an address, or a node port of a protocol: what only one service
// can have.
type resource struct {
	addr     netip.Addr
	protocol corev1.Protocol
	port     int32
}

// String names the resource as a user wrote it.
func (r resource) String() string {
	if r.addr.IsValid() {
		return r.addr.String()
	}
	return fmt.Sprintf("node port %d/%s", r.port, r.protocol)
}

// claims is who says to have what. It is built from the services in the store
// alone, so that each controller comes to the same result.
type claims struct {
	claimants map[resource]map[api.Key]struct{}
	held      map[api.Key][]resource
	since     map[api.Key]time.Time // creation of the service
}

func newClaims() *claims {
	return &claims{
		claimants: map[resource]map[api.Key]struct{}{},
		held:      map[api.Key][]resource{},
		since:     map[api.Key]time.Time{},
	}
}

// replace makes wanted all that the service claims. It returns the services
// whose own claim this may decide.
func (c *claims) replace(key api.Key, since time.Time, wanted []resource) (concerned []api.Key) {
	old := c.held[key]
	for _, res := range old {
		if !slices.Contains(wanted, res) {
			delete(c.claimants[res], key)
			concerned = c.others(concerned, res, key)
			if len(c.claimants[res]) == 0 {
				delete(c.claimants, res)
			}
		}
	}
	for _, res := range wanted {
		if c.claimants[res] == nil {
			c.claimants[res] = map[api.Key]struct{}{}
		}
		c.claimants[res][key] = struct{}{}
		if !slices.Contains(old, res) {
			concerned = c.others(concerned, res, key)
		}
	}
	if wanted == nil {
		delete(c.held, key)
		delete(c.since, key)
		return concerned
	}
	c.held[key], c.since[key] = wanted, since
	return concerned
}

func (c *claims) others(to []api.Key, res resource, key api.Key) []api.Key {
	for other := range c.claimants[res] {
		if other != key {
			to = append(to, other)
		}
	}
	return to
}

// owner is who has the resource: of several claimants the oldest, then the
// first by name.
func (c *claims) owner(res resource) (owner api.Key, ok bool) {
	for key := range c.claimants[res] {
		if !ok || c.before(key, owner) {
			owner, ok = key, true
		}
	}
	return owner, ok
}

func (c *claims) before(a, b api.Key) bool {
	if d := c.since[a].Compare(c.since[b]); d != 0 {
		return d < 0
	}
	return a.String() < b.String()
}

// free reports whether nobody claims the resource.
func (c *claims) free(res resource) bool { return len(c.claimants[res]) == 0 }

// claimedBy lists what the service has, or asks for. It is not nil.
func claimedBy(svc *corev1.Service) []resource {
	claimed := []resource{}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return claimed
	}
	for _, text := range requestedAddresses(&svc.Spec) {
		if addr, err := netip.ParseAddr(text); err == nil {
			claimed = append(claimed, resource{addr: addr.Unmap()})
		}
	}
	if wantsNodePorts(&svc.Spec) {
		for _, p := range svc.Spec.Ports {
			if p.NodePort != 0 {
				claimed = append(claimed, nodePort(p.Protocol, p.NodePort))
			}
		}
	}
	if n := svc.Spec.HealthCheckNodePort; n != 0 && wantsHealthCheck(&svc.Spec) {
		claimed = append(claimed, nodePort(corev1.ProtocolTCP, n))
	}
	return claimed
}

func nodePort(protocol corev1.Protocol, port int32) resource {
	if protocol == "" {
		protocol = corev1.ProtocolTCP
	}
	return resource{protocol: protocol, port: port}
}

func requestedAddresses(s *corev1.ServiceSpec) []string {
	if len(s.ClusterIPs) == 0 && s.ClusterIP != "" {
		return []string{s.ClusterIP}
	}
	return s.ClusterIPs
}

func wantsNodePorts(s *corev1.ServiceSpec) bool {
	switch s.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return s.AllocateLoadBalancerNodePorts == nil || *s.AllocateLoadBalancerNodePorts
	}
	return false
}

// wantsHealthCheck: a load balancer that is to send only to nodes with endpoints
// has to know which these are.
func wantsHealthCheck(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeLoadBalancer && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}
