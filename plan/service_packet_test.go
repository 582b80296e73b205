package plan_test

import (
	"fmt"
	"io"
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

	"github.com/twill-net/twill/api"
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

func TestPacketsHostPort(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.SetLocal(s.pod(0, api.WorkloadEndpointPort{Protocol: corev1.ProtocolTCP, HostPort: 8000, Port: 8080}))
		s.apply()
		if server, client, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 8000); server != "pod0" || client != s.family.outside {
			t.Errorf("%s answers to %s (%v), want pod0 to the client's own address", server, client, err)
		}
		if server, client, err := s.ask(s.pods[0], "tcp", s.family.nodeOutside, 8000); server != "pod0" || client == s.family.pod[0] {
			t.Errorf("the pod itself: %s answers to %s (%v)", server, client, err)
		}
		s.planner.DeleteLocal("tw-0")
		s.apply()
		if _, _, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 8000); err != syscall.ECONNREFUSED {
			t.Errorf("after the pod is gone: %v, want refused by the node", err)
		}
	})
}

// TestPacketsHostPortOnEveryAddress: a host port without an address is on every address
// of the node, also those that it gets later or that other devices have, and on 127.0.0.1
// for programs on the node. What a program serves on [::1] stays reachable.
func TestPacketsHostPortOnEveryAddress(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.SetLocal(s.pod(0,
			api.WorkloadEndpointPort{Protocol: corev1.ProtocolTCP, HostPort: 8000, Port: 8080},
			api.WorkloadEndpointPort{Protocol: corev1.ProtocolUDP, HostPort: 8000, Port: 8080}))
		s.apply()
		s.podSysctls()
		s.serve(s.node, "node")
		later := netip.MustParseAddr(s.family.outside).Next().String()
		for dev, address := range map[string]string{"up0": later, "lo": s.family.elsewhere} {
			a := netip.MustParseAddr(address)
			s.node.Address(t, dev, netip.PrefixFrom(a, a.BitLen()).String())
		}
		all := []string{s.family.nodeOutside, later, s.family.elsewhere}
		for _, network := range []string{"tcp", "udp"} {
			for _, host := range all {
				if server, client, err := s.ask(s.outside, network, host, 8000); server != "pod0" || client != s.family.outside {
					t.Errorf("%s from outside to %s: %s answers to %s (%v), want pod0 to the client's own address", network, host, server, client, err)
				}
				if server, client, err := s.ask(s.pods[1], network, host, 8000); server != "pod0" || client != s.family.pod[1] {
					t.Errorf("%s from a pod to %s: %s answers to %s (%v), want pod0 to the client's own address", network, host, server, client, err)
				}
			}
			fromNode := all
			if s.family.name == "IPv4" {
				fromNode = append(all, "127.0.0.1", "127.1.2.3")
			}
			for _, host := range fromNode {
				if server, client, err := s.ask(s.node, network, host, 8000); server != "pod0" || client != s.family.nodeOutside {
					t.Errorf("%s from the node to %s: %s answers to %s (%v), want pod0 to the node's address", network, host, server, client, err)
				}
			}
			if server, _, err := s.ask(s.pods[0], network, later, 8000); server != "pod0" {
				t.Errorf("%s from the pod itself: %q answers (%v)", network, server, err)
			}
		}
		if server, _, err := s.ask(s.outside, "tcp", later, 8080); server != "node" {
			t.Errorf("another port: %q answers (%v), want the node", server, err)
		}

		// A program on the node that has the port: pods come first, but not on ::1.
		s.planner.SetLocal(s.pod(0, api.WorkloadEndpointPort{Protocol: corev1.ProtocolTCP, HostPort: 8080, Port: 9}))
		s.apply()
		loopback, want := "127.0.0.1", ""
		if s.family.name == "IPv6" {
			loopback, want = "::1", "node"
		}
		if server, _, err := s.ask(s.node, "tcp", loopback, 8080); server != want {
			t.Errorf("a program on %s: %q answers (%v), want %q", loopback, server, err, want)
		}

		s.planner.SetLocal(s.pod(0))
		s.apply()
		if _, _, err := s.ask(s.outside, "tcp", later, 8000); err != syscall.ECONNREFUSED {
			t.Errorf("without the host port: %v, want refused by the node", err)
		}
	})
}

// TestPacketsHostPortOnLoopback: a host port of 127.0.0.1 is for programs on the
// node alone, under whichever of its addresses they ask, and opens nothing else of
// the node's loopback to the pod.
func TestPacketsHostPortOnLoopback(t *testing.T) {
	s := newSite(t, siteFamilies[0])
	s.planner.SetLocal(s.pod(0, api.WorkloadEndpointPort{Protocol: corev1.ProtocolTCP, HostIP: "127.0.0.1", HostPort: 8000, Port: 8080}))
	s.apply()
	s.podSysctls()
	for _, from := range []string{"127.0.0.1", s.family.nodeOutside} {
		dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		var c net.Conn
		var err error
		s.node.Do(func() { c, err = dialer.Dial("tcp", "127.0.0.1:8000") })
		if err != nil {
			t.Fatalf("from %s: %v", from, err)
		}
		defer c.Close()
		reply, err := io.ReadAll(c)
		if !strings.HasPrefix(string(reply), "pod0 ") {
			t.Errorf("from %s: the answer is %q (%v), want pod0's", from, reply, err)
		}
	}
	if _, _, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 8000); err != syscall.ECONNREFUSED {
		t.Errorf("from outside: %v, want refused", err)
	}

	// Only a pod that crafts packets asks for another host's loopback.
	s.serve(s.node, "node")
	s.pods[0].Sysctl(t, "ipv4/conf/eth0/route_localnet", "1")
	for _, args := range [][]string{{"addr", "del", "127.0.0.1/8", "dev", "lo"}, {"route", "add", "127.0.0.0/8", "via", s.family.nodePod[0], "src", s.family.pod[0]}} {
		if out, err := s.pods[0].Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	if !s.silent(s.pods[0], "tcp", "127.0.0.1", 8080) {
		t.Error("the pod reaches a port of the node's loopback")
	}
	if !s.silent(s.pods[0], "tcp", "127.0.0.1", 8000) {
		t.Error("the pod reaches a host port of the node's loopback")
	}
}

// TestPacketsOfAnotherBalancer: where another program balances Services, Twill
// leaves them alone and does not hide the clients of what that one translates.
// Host ports stay.
func TestPacketsOfAnotherBalancer(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		s.planner.Put(web(s.family.clusterIP))
		s.planner.Put(webSlice(s.family.pod[:]))
		s.planner.SetLocal(s.pod(0, api.WorkloadEndpointPort{Protocol: corev1.ProtocolTCP, HostPort: 8000, Port: 8080}))
		s.planner.SetServices(false)
		s.apply()
		if server, _, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 30080); err != syscall.ECONNREFUSED {
			t.Errorf("the node port: %s answers (%v), want refused by the node", server, err)
		}
		if server, client, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 8000); server != "pod0" || client != s.family.outside {
			t.Errorf("the host port: %s answers to %s (%v), want pod0 to the client's own address", server, client, err)
		}
		if server, client, err := s.ask(s.pods[0], "tcp", s.family.nodeOutside, 8000); server != "pod0" || client == s.family.pod[0] {
			t.Errorf("the pod's own host port: %s answers to %s (%v)", server, client, err)
		}

		other := s.node.Command("nft", "-f", "-")
		other.Stdin = strings.NewReader(fmt.Sprintf(`table %s other { chain c { type nat hook prerouting priority -100
			tcp dport 30081 dnat to %s
		}
		}
`, map[string]string{"IPv4": "ip", "IPv6": "ip6"}[s.family.name], net.JoinHostPort(s.family.pod[1], "8080")))
		if out, err := other.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if server, client, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 30081); server != "pod1" || client != s.family.outside {
			t.Errorf("%s answers to %s (%v), want pod1 to the client's own address", server, client, err)
		}

		s.planner.SetServices(true)
		s.apply()
		if _, _, err := s.ask(s.outside, "tcp", s.family.nodeOutside, 30080); err != nil {
			t.Errorf("taken back, the node port: %v", err)
		}
	})
}

// TestPacketsIntoATunnel: a connection that another program translates to a pod of
// another node, and masquerades, goes into the tunnel with the node's address, the only
// one to which the other node can answer. The tunnel's device has no global address,
// and devices that are older than the node's have others. Programs on the node and
// clients outside are served alike.
func TestPacketsIntoATunnel(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		other := s.node.Command("nft", "-f", "-")
		remote, dnat := s.remotePod(), map[string]string{"IPv4": "ip", "IPv6": "ip6"}[s.family.name]
		other.Stdin = strings.NewReader(fmt.Sprintf(`table %s other {
			chain pre { type nat hook prerouting priority -100; tcp dport 30081 dnat to %[2]s; }
			chain out { type nat hook output priority -100; tcp dport 30081 dnat to %[2]s; }
			chain post { type nat hook postrouting priority 100; ct status dnat masquerade; }
		}
`, dnat, net.JoinHostPort(remote, "8080")))
		if out, err := other.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		s.planner.SetServices(false)
		s.apply()
		for from, ns := range map[string]*testnet.NS{"outside": s.outside, "the node": s.node} {
			if server, client, err := s.ask(ns, "tcp", s.family.nodeOutside, 30081); server != "remote" || client != s.family.nodeOutside {
				t.Errorf("%s: %s answers to %s (%v), want remote to the node's address", from, server, client, err)
			}
		}
	})
}

// TestPacketsOfUnattachedPods: a pod that twill-cni has not attached, with an address of
// the node's blocks, is a pod of the node to Services.
func TestPacketsOfUnattachedPods(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		pod := testnet.New(t)
		pod.Sysctl(t, "ipv6/conf/default/accept_dad", "0")
		testnet.Pair(t, s.node, pod, "net1", "eth0")
		block, anywhere := "10.244.0.0/18", "0.0.0.0/0"
		if s.family.name == "IPv6" {
			block, anywhere = "fd00::/30", "::/0"
		}
		gateway := netip.MustParseAddr(s.family.unattached).Prev().String()
		s.node.Address(t, "net1", fmt.Sprintf("%s/%d", gateway, s.family.length))
		pod.Address(t, "eth0", fmt.Sprintf("%s/%d", s.family.unattached, s.family.length))
		pod.Route(t, anywhere, gateway)
		s.serve(pod, "unattached")

		local := web(s.family.clusterIP, func(svc *corev1.Service) {
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		})
		s.planner.Put(local)
		s.planner.Put(webSlice(nil, s.family.pod[1]))
		s.planner.Put(&api.IPAMBlock{ObjectMeta: metav1.ObjectMeta{Name: "block"}, Spec: api.IPAMBlockSpec{CIDR: block, Affinity: api.AffinityOf("here")}})
		s.apply()
		for host, port := range map[string]int{s.family.clusterIP: 80, s.family.nodeOutside: 30080} {
			for _, network := range []string{"tcp", "udp"} {
				if server, client, err := s.ask(pod, network, host, port); server != "pod1" || client != s.family.unattached {
					t.Errorf("%s to %s: %s answers to %s (%v), want pod1 to the pod's own address", network, host, server, client, err)
				}
			}
		}
		if !s.silent(s.outside, "tcp", s.family.nodeOutside, 30080) {
			t.Error("outside, no local endpoint: an answer, want silence")
		}
		s.planner.Put(webSlice([]string{s.family.unattached}))
		s.apply()
		if server, client, err := s.ask(pod, "tcp", s.family.clusterIP, 80); server != "unattached" || client == s.family.unattached {
			t.Errorf("itself: %s answers to %s (%v), want the pod to another address than its own", server, client, err)
		}

		s.planner.Delete(api.IPAMBlockKind, api.Key{Name: "block"})
		s.planner.Put(webSlice(nil, s.family.pod[1]))
		s.apply()
		if _, client, err := s.ask(pod, "tcp", s.family.clusterIP, 80); err != nil || client == s.family.unattached {
			t.Errorf("out of the node's blocks: the client is seen as %s (%v), want an address of the node", client, err)
		}
	})
}
