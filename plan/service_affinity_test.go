package plan_test

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/dataplane/testnet"
)

func clientIP(svc *corev1.Service) { svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }

// clients gives the client outside the cluster n more addresses.
func (s *site) clients(n int) (addrs []netip.Addr) {
	s.t.Helper()
	a := netip.MustParseAddr(s.family.outside)
	for range n {
		a = a.Next()
		s.outside.Address(s.t, "eth0", netip.PrefixFrom(a, s.family.length).String())
		addrs = append(addrs, a)
	}
	return addrs
}

// askFrom connects from an address of the client outside and returns the server's
// name.
func (s *site) askFrom(client netip.Addr, to string, port int) string {
	s.t.Helper()
	dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0))}
	var c net.Conn
	var err error
	target := netip.AddrPortFrom(netip.MustParseAddr(to), uint16(port)).String()
	s.outside.Do(func() { c, err = dialer.Dial("tcp", target) })
	if err != nil {
		s.t.Fatalf("%s to %s: %v", client, target, err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 4)
	if _, err := c.Read(b); err != nil {
		s.t.Fatalf("%s to %s: %v", client, target, err)
	}
	return string(b)
}

// A client reaches the same endpoint by every address of a Service's port, also
// where traffic from outside stays on the node.
func TestPacketsAffinityIsOfTheServicePort(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.SetExternalIPRanges([]netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(s.family.other), 8).Masked()})
		clients := s.clients(8)
		for _, policy := range []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal} {
			s.planner.Put(web(s.family.clusterIP, clientIP, func(svc *corev1.Service) {
				svc.Spec.Type = corev1.ServiceTypeLoadBalancer
				svc.Spec.ExternalTrafficPolicy = policy
				svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: s.family.elsewhere}}
				svc.Spec.ExternalIPs = []string{s.family.other}
			}))
			s.planner.Put(webSlice(s.family.pod[:]))
			s.apply()
			for _, client := range clients {
				first := s.askFrom(client, s.family.clusterIP, 80)
				for _, to := range []struct {
					name, host string
					port       int
				}{
					{"load balancer", s.family.elsewhere, 80},
					{"external IP", s.family.other, 80},
					{"node port", s.family.nodeOutside, 30080},
				} {
					if got := s.askFrom(client, to.host, to.port); got != first {
						t.Errorf("policy %s: %s gets %s by the cluster IP and %s by the %s", policy, client, first, got, to.name)
					}
				}
			}
		}
	})
}

// What the clients of one Service fill is not what another remembers its clients
// in.
func TestPacketsAffinityOfOtherServicesCannotBeFilled(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.Put(web(s.family.clusterIP, clientIP))
		s.planner.Put(webSlice(s.family.pod[:]))
		flooded := web(s.family.other, clientIP, func(svc *corev1.Service) {
			svc.Name, svc.Spec.Ports = "flooded", svc.Spec.Ports[1:]
			svc.Spec.Ports[0].NodePort = 0
		})
		nobody := webSlice([]string{netip.MustParseAddr(s.family.pod[0]).Next().String()})
		nobody.Name, nobody.Labels["kubernetes.io/service-name"] = "flooded-1", "flooded"
		s.planner.Put(flooded)
		s.planner.Put(nobody)
		s.apply()

		const sources = 70_000 // more than a map holds
		sendFromMany(t, s.outside, sources, netip.AddrPortFrom(netip.MustParseAddr(s.family.other), 80))
		for _, client := range s.clients(8) {
			var servers []string
			for range 5 {
				servers = append(servers, s.askFrom(client, s.family.clusterIP, 80))
			}
			if slices.Sort(servers); servers[0] != servers[4] {
				t.Errorf("%s gets %v, want always the same", client, servers)
			}
		}
	})
}

// sendFromMany sends a datagram from each of n addresses that nobody has.
func sendFromMany(t *testing.T, ns *testnet.NS, n int, to netip.AddrPort) {
	t.Helper()
	var err error
	ns.Do(func() {
		from := netip.MustParseAddr("100.64.0.1")
		family, level, transparent := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
		var target unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: [4]byte(to.Addr().AsSlice()[:4])}
		if to.Addr().Is6() {
			from = netip.MustParseAddr("2001:db8:1::1")
			family, level, transparent = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
			target = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
		}
		var fd int
		if fd, err = unix.Socket(family, unix.SOCK_DGRAM, 0); err != nil {
			return
		}
		defer unix.Close(fd)
		if err = unix.SetsockoptInt(fd, level, transparent, 1); err != nil {
			return
		}
		for range n {
			source := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
			if from.Is4() {
				source = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
			}
			if err = unix.Sendmsg(fd, []byte("?"), source, target, 0); err != nil {
				return
			}
			from = from.Next()
		}
	})
	if err != nil {
		t.Fatalf("send from many addresses: %v", err)
	}
}
