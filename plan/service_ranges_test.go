package plan_test

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// What is sent to a cluster IP that no Service has does not leave the node: here a
// server outside has that address. Addresses that are something else's stay in
// reach, though they lie in the range.
func TestPacketsToClusterIPsOfNoService(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		bits := 32
		if netip.MustParseAddr(s.family.other).Is6() {
			bits = 128
		}
		stranger := netip.PrefixFrom(netip.MustParseAddr(s.family.other), bits)
		s.outside.Address(t, "lo", stranger.String())
		s.serve(s.outside, "stranger")
		expect := func(what string, leaves bool) {
			t.Helper()
			s.apply()
			for name, ns := range map[string]*testnet.NS{"a pod": s.pods[0], "the node": s.node} {
				patience := 5 * time.Second
				if !leaves {
					patience = 300 * time.Millisecond
				}
				if server, _, err := s.askPatiently(ns, "tcp", s.family.other, 8080, patience); (server == "stranger") != leaves {
					t.Errorf("%s, from %s: answer from %q (%v)", what, name, server, err)
				}
			}
		}
		expect("no range is known", true)
		ranges := []netip.Prefix{netip.PrefixFrom(stranger.Addr(), bits-8).Masked()}
		s.planner.SetServiceRanges(ranges)
		expect("the range is known", false)

		svc := web(s.family.other)
		svc.Spec.Ports[0].Port, svc.Spec.Ports[1].Port = 8080, 8080
		s.planner.Put(svc)
		s.planner.Put(webSlice(s.family.pod[:]))
		s.apply()
		if got := s.servers(s.pods[0], "tcp", s.family.other, 8080, 10); len(got) != 2 {
			t.Errorf("a service has the address: answers from %v", got)
		}
		s.planner.Delete(api.ServiceKind, api.Key{Namespace: "default", Name: "web"})
		expect("the service is deleted", false)

		s.planner.SetReserved([]plan.Reserved{{Prefix: stranger, What: "a network of the host"}})
		expect("a network of the host", true)
		s.planner.SetReserved(nil)
		expect("no network of the host any more", false)
		s.planner.Put(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "there"},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: s.family.other}}},
		})
		expect("another node's address", true)
		s.planner.Delete(api.NodeKind, api.Key{Name: "there"})
		expect("the node is deleted", false)

		s.node.Address(t, "lo", stranger.String())
		s.serve(s.node, "node")
		if server, _, err := s.ask(s.pods[0], "tcp", s.family.other, 8080); server != "node" {
			t.Errorf("an address of the node itself: answer from %q (%v)", server, err)
		}
		s.planner.SetServices(false)
		s.apply()
		for k := range s.planner.Flush().Elements.All() {
			if k.Set == "service-cidrs4" || k.Set == "service-cidrs6" {
				t.Errorf("another program serves Services, and %s has elements", k.Set)
			}
		}
	})
}
