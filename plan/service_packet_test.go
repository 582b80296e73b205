package plan_test

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/twill-net/twill/dataplane/testnet"
)

// web is a Service of one family, port 80 to 8080, for TCP and UDP.
func web(clusterIP string, change ...func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
			Ports: []corev1.ServicePort{
				{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080},
				{Name: "quic", Protocol: corev1.ProtocolUDP, Port: 80, NodePort: 30080},
			},
		},
	}
	for _, f := range change {
		f(svc)
	}
	return svc
}

// webSlice has an endpoint for each address; those on this node have node
// "here".
func webSlice(here []string, elsewhere ...string) *discoveryv1.EndpointSlice {
	es := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{
			{Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](8080)},
			{Name: ptr.To("quic"), Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To[int32](8080)},
		},
	}
	for node, addrs := range map[string][]string{"here": here, "elsewhere": elsewhere} {
		for _, a := range addrs {
			if netip.MustParseAddr(a).Is6() {
				es.AddressType = discoveryv1.AddressTypeIPv6
			}
			es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, NodeName: &node})
		}
	}
	return es
}

func TestPacketsClusterIP(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.Put(web(s.family.clusterIP))
		s.planner.Put(webSlice(s.family.pod[:]))
		s.apply()
		both := []string{"pod0", "pod1"}
		for _, network := range []string{"tcp", "udp"} {
			if got := s.servers(s.pods[0], network, s.family.clusterIP, 80, 30); !slices.Equal(got, both) {
				t.Errorf("%s from a pod: answers from %v", network, got)
			}
			if got := s.servers(s.node, network, s.family.clusterIP, 80, 30); !slices.Equal(got, both) {
				t.Errorf("%s from the node: answers from %v", network, got)
			}
			if got := s.servers(s.outside, network, s.family.clusterIP, 80, 30); !slices.Equal(got, both) {
				t.Errorf("%s from outside: answers from %v", network, got)
			}
		}
		for range 20 {
			server, client, err := s.ask(s.pods[0], "tcp", s.family.clusterIP, 80)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case server == "pod1" && client != s.family.pod[0]:
				t.Fatalf("the other pod sees the client as %s, want its own address", client)
			case server == "pod0" && client == s.family.pod[0]:
				t.Fatal("a pod that reaches itself sees itself as client")
			}
		}
	})
}

func TestPacketsWithoutEndpointsAreRefused(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.Put(web(s.family.clusterIP))
		s.apply()
		for _, network := range []string{"tcp", "udp"} {
			for _, to := range []struct {
				host string
				port int
			}{{s.family.clusterIP, 80}, {s.family.nodeOutside, 30080}, {s.family.clusterIP, 81}} {
				for from, ns := range map[string]*testnet.NS{"a pod": s.pods[0], "the node": s.node, "outside": s.outside} {
					if _, _, err := s.ask(ns, network, to.host, to.port); err != syscall.ECONNREFUSED {
						t.Errorf("%s from %s to %s port %d: %v, want refused", network, from, to.host, to.port, err)
					}
				}
			}
		}
	})
}

func TestPacketsNodePort(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.Put(web(s.family.clusterIP))
		s.planner.Put(webSlice(s.family.pod[:]))
		s.apply()
		for _, network := range []string{"tcp", "udp"} {
			if got := s.servers(s.outside, network, s.family.nodeOutside, 30080, 30); len(got) != 2 {
				t.Errorf("%s from outside: answers from %v", network, got)
			}
			if got := s.servers(s.pods[1], network, s.family.nodeOutside, 30080, 30); len(got) != 2 {
				t.Errorf("%s from a pod: answers from %v", network, got)
			}
			if got := s.servers(s.node, network, s.family.nodeOutside, 30080, 30); len(got) != 2 {
				t.Errorf("%s from the node itself: answers from %v", network, got)
			}
		}
		if _, client, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 30080); err != nil || client == s.family.outside {
			t.Errorf("the pod sees %s (%v), want an address of the node", client, err)
		}
	})
}

func TestPacketsExternalPolicyLocal(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.Put(web(s.family.clusterIP, func(svc *corev1.Service) {
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}))
		s.planner.Put(webSlice(s.family.pod[:1], s.family.pod[1]))
		s.apply()
		for range 20 {
			if server, client, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 30080); server != "pod0" || client != s.family.outside {
				t.Fatalf("outside: %s answers to %s (%v), want pod0 to the client's own address", server, client, err)
			}
		}
		if got := s.servers(s.pods[1], "tcp", s.family.nodeOutside, 30080, 30); len(got) != 2 {
			t.Errorf("a pod of this node: answers from %v, want both", got)
		}
		if got := s.servers(s.node, "tcp", s.family.nodeOutside, 30080, 30); len(got) != 2 {
			t.Errorf("the node itself: answers from %v, want both", got)
		}

		s.planner.Put(webSlice(nil, s.family.pod[1]))
		s.apply()
		if !s.silent(s.outside, "tcp", s.family.nodeOutside, 30080) {
			t.Error("outside, no local endpoint: an answer, want silence")
		}
		if got := s.servers(s.node, "tcp", s.family.nodeOutside, 30080, 5); !slices.Equal(got, []string{"pod1"}) {
			t.Errorf("the node itself, no local endpoint: answers from %v", got)
		}
	})
}

func TestPacketsInternalPolicyLocal(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.Put(web(s.family.clusterIP, func(svc *corev1.Service) {
			svc.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		}))
		s.planner.Put(webSlice(s.family.pod[:1], s.family.pod[1]))
		s.apply()
		if got := s.servers(s.pods[1], "tcp", s.family.clusterIP, 80, 20); !slices.Equal(got, []string{"pod0"}) {
			t.Errorf("answers from %v, want the local pod", got)
		}
		s.planner.Put(webSlice(nil, s.family.pod[1]))
		s.apply()
		if !s.silent(s.pods[0], "tcp", s.family.clusterIP, 80) {
			t.Error("no local endpoint: an answer, want silence")
		}
	})
}

func TestPacketsAffinity(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.Put(web(s.family.clusterIP, func(svc *corev1.Service) {
			svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		}))
		s.planner.Put(webSlice(s.family.pod[:]))
		s.apply()
		for _, network := range []string{"tcp", "udp"} {
			s.planner.Put(webSlice(s.family.pod[:]))
			s.apply()
			first := s.servers(s.outside, network, s.family.clusterIP, 80, 20)
			if len(first) != 1 {
				t.Fatalf("%s: answers from %v, want always the same", network, first)
			}
			// The client's backend goes: it moves, and stays there when the
			// first comes back.
			gone := slices.Index([]string{"pod0", "pod1"}, first[0])
			s.planner.Put(webSlice(s.family.pod[1-gone : 2-gone]))
			s.apply()
			s.forgetConnections()
			second := s.servers(s.outside, network, s.family.clusterIP, 80, 20)
			if len(second) != 1 || second[0] == first[0] {
				t.Fatalf("%s, after %s is gone: answers from %v", network, first[0], second)
			}
			s.planner.Put(webSlice(s.family.pod[:]))
			s.apply()
			if third := s.servers(s.outside, network, s.family.clusterIP, 80, 20); !slices.Equal(third, second) {
				t.Errorf("%s, after %s is back: answers from %v, want still %v", network, first[0], third, second)
			}
		}
		s.planner.Put(web(s.family.clusterIP))
		s.apply()
		if got := s.servers(s.outside, "tcp", s.family.clusterIP, 80, 30); len(got) != 2 {
			t.Errorf("without affinity again: answers from %v, want both", got)
		}
	})
}

// TestPacketsAffinityKeepsMarks: the mark that another program gives to packets is on them
// after session affinity has chosen an endpoint, and routing goes by it: of packets that
// come in, of those of programs on the node, and of further packets of a connection
// that nobody has answered yet.
func TestPacketsAffinityKeepsMarks(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		remote := s.remotePod()
		s.planner.Put(web(s.family.clusterIP, func(svc *corev1.Service) {
			svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		}))
		s.planner.Put(webSlice(nil, remote))
		s.apply()
		probe := s.node.Command("nft", "-f", "-")
		probe.Stdin = strings.NewReader(`table inet probe {
			chain early { type filter hook prerouting priority -150; iifname up0 meta mark set 0xabcd1234; }
			chain early-out { type route hook output priority -150; meta mark set 0xabcd1234; }
			chain late { type filter hook postrouting priority 0; oifname twill-vxlan meta l4proto { tcp, udp } meta mark != 0xabcd1234 counter comment "lost"; }
			chain sent { type filter hook postrouting priority 0; ip daddr 10.244.9.3 counter; ip6 daddr fd00:9::3 counter; }
		}
`)
		if out, err := probe.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		// Only marked packets are routed to the endpoint.
		family := map[string]string{"IPv4": "-4", "IPv6": "-6"}[s.family.name]
		for _, args := range [][]string{
			{family, "route", "del", remote, "dev", "twill-vxlan"},
			{family, "route", "add", remote, "dev", "twill-vxlan", "table", "77"},
			{family, "rule", "add", "fwmark", "0xabcd1234", "lookup", "77"},
		} {
			if out, err := s.node.Command("ip", args...).CombinedOutput(); err != nil {
				t.Fatalf("ip %v: %v: %s", args, err, out)
			}
		}
		for from, ns := range map[string]*testnet.NS{"the node": s.node, "outside": s.outside} {
			for _, network := range []string{"tcp", "udp"} {
				for range 3 {
					if server, _, err := s.ask(ns, network, s.family.clusterIP, 80); server != "remote" {
						t.Errorf("%s from %s: %q answers (%v), want remote", network, from, server, err)
					}
				}
			}
		}

		// Nobody has this endpoint: its connections stay new.
		nobody := netip.MustParseAddr(remote).Next().String()
		for _, args := range [][]string{
			{family, "route", "add", nobody, "dev", "twill-vxlan", "table", "77"},
			{family, "neigh", "add", nobody, "lladdr", "02:00:00:00:00:01", "dev", "twill-vxlan"},
		} {
			if out, err := s.node.Command("ip", args...).CombinedOutput(); err != nil {
				t.Fatalf("ip %v: %v: %s", args, err, out)
			}
		}
		s.planner.Put(webSlice(nil, nobody))
		s.apply()
		var c net.Conn
		s.outside.Do(func() {
			var err error
			if c, err = net.Dial("udp", net.JoinHostPort(s.family.clusterIP, "80")); err != nil {
				t.Fatal(err)
			}
		})
		defer c.Close()
		for range 5 {
			if _, err := c.Write([]byte("?")); err != nil {
				t.Fatal(err)
			}
		}
		for deadline := time.Now().Add(5 * time.Second); ; {
			counted := s.list()
			if !strings.Contains(counted, "counter packets 0 bytes 0 comment \"lost\"") {
				t.Fatalf("packets went to the endpoint without their mark:\n%s", counted)
			}
			if strings.Contains(counted, "counter packets 5 ") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not all packets went to the endpoint:\n%s", counted)
			}
		}
	})
}

func TestPacketsLoadBalancerSourceRanges(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		balancer := func(ranges ...string) *corev1.Service {
			return web(s.family.clusterIP, func(svc *corev1.Service) {
				svc.Spec.Type = corev1.ServiceTypeLoadBalancer
				svc.Spec.LoadBalancerSourceRanges = ranges
				svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: s.family.elsewhere}}
			})
		}
		s.planner.Put(webSlice(s.family.pod[:]))
		host := netip.MustParseAddr(s.family.outside)
		for _, c := range []struct {
			ranges  []string
			let     bool
			meaning string
		}{
			{nil, true, "no ranges"},
			{[]string{netip.PrefixFrom(host, host.BitLen()).String(), netip.PrefixFrom(host, 20).Masked().String()}, true, "the client's, twice"},
			{[]string{s.family.other + "/32"}, false, "another's"},
			{[]string{"0.0.0.0/0", "::/0"}, true, "everybody's"},
		} {
			s.planner.Put(balancer(c.ranges...))
			s.apply()
			if c.let {
				if _, _, err := s.ask(s.outside, "tcp", s.family.elsewhere, 80); err != nil {
					t.Errorf("%s: %v", c.meaning, err)
				}
			} else if !s.silent(s.outside, "tcp", s.family.elsewhere, 80) {
				t.Errorf("%s: an answer, want silence", c.meaning)
			}
			if _, _, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 30080); err != nil {
				t.Errorf("%s: the node port: %v, want it open to all", c.meaning, err)
			}

			// Without endpoints the ranges hold as well: a stranger does not learn
			// that there is a service.
			s.planner.Put(webSlice(nil))
			s.apply()
			for _, network := range []string{"tcp", "udp"} {
				_, _, err := s.askPatiently(s.outside, network, s.family.elsewhere, 80, time.Second)
				if c.let && err != syscall.ECONNREFUSED || !c.let && err != errTimeout {
					t.Errorf("%s, %s, no endpoints: %v", c.meaning, network, err)
				}
			}
			s.planner.Put(webSlice(s.family.pod[:]))
		}
	})
}
