package plan_test

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
)

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
