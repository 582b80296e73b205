package plan_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/testnet"
)

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
