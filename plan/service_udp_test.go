package plan_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/conntrack"
)

// A client that keeps sending from one port gets another backend when its own
// goes, when the service is scaled to zero and back, and where it began to
// send before there was a service.
func TestPacketsUDPClientsFollow(t *testing.T) {
	eachFamily(t, func(t *testing.T, s *site) {
		apply, answer := s.applyTracked(), s.flow()
		answer(10 * time.Millisecond)
		for _, step := range []struct {
			name      string
			endpoints []string
			want      string
		}{
			{"the service appears", s.family.pod[:1], "pod0"},
			{"another endpoint", s.family.pod[1:], "pod1"},
			{"scaled to zero", nil, ""},
			{"and back", s.family.pod[:1], "pod0"},
		} {
			s.planner.Put(web(s.family.clusterIP))
			s.planner.Put(webSlice(step.endpoints))
			apply()
			patience := 5 * time.Second
			if step.want == "" {
				patience = 300 * time.Millisecond
			}
			if got := answer(patience); got != step.want {
				t.Fatalf("%s: answer from %q, want %q", step.name, got, step.want)
			}
		}
		s.planner.Delete(api.ServiceKind, api.Key{Namespace: "default", Name: "web"})
		apply()
		if got := answer(300 * time.Millisecond); got != "" {
			t.Errorf("the service is deleted: answer from %q", got)
		}
	})
}

// A UDP flow stays with its endpoint as a TCP connection does: while it terminates
// and serves, and when others are chosen for new flows.
func TestPacketsUDPFlowsStayWithEndpointsThatServe(t *testing.T) {
	internalLocal := func(svc *corev1.Service) {
		svc.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}
	first := func(ready, serving, terminating *bool) func(*discoveryv1.EndpointSlice) {
		return func(es *discoveryv1.EndpointSlice) {
			es.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}
		}
	}
	yes, no := ptr.To(true), ptr.To(false)
	eachFamily(t, func(t *testing.T, s *site) {
		apply := s.applyTracked()
		for _, c := range []struct {
			name    string
			service func(*corev1.Service)
			slice   func(*discoveryv1.EndpointSlice)
			want    string
		}{
			{"it terminates and serves", nil, first(no, yes, yes), "pod0"},
			{"it is not ready, and nothing is said of serving", nil, first(no, nil, nil), "pod0"},
			{"internal policy Local, and it is elsewhere", internalLocal, func(es *discoveryv1.EndpointSlice) {
				es.Endpoints[0].NodeName = ptr.To("elsewhere")
			}, "pod0"},
			{"hints name the other", nil, func(es *discoveryv1.EndpointSlice) {
				for i, node := range []string{"elsewhere", "here"} {
					es.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: node}}}
				}
			}, "pod0"},
			{"it terminates and no longer serves", nil, first(no, no, yes), "pod1"},
			{"it is not ready and does not serve", nil, first(no, no, nil), "pod1"},
		} {
			s.forgetConnections()
			s.planner.Put(web(s.family.clusterIP))
			s.planner.Put(webSlice(s.family.pod[:1]))
			apply()
			answer := s.flow()
			if got := answer(5 * time.Second); got != "pod0" {
				t.Fatalf("%s: at first the answer is from %q", c.name, got)
			}
			if c.service != nil {
				s.planner.Put(web(s.family.clusterIP, c.service))
			}
			es := webSlice(s.family.pod[:])
			c.slice(es)
			s.planner.Put(es)
			apply()
			if got := answer(5 * time.Second); got != c.want {
				t.Errorf("%s: the flow is answered by %q, want %q", c.name, got, c.want)
			}
		}
	})
}

// applyTracked returns a function that applies the plan to the node's rules and
// connection tracking.
func (s *site) applyTracked() func() {
	s.t.Helper()
	var tracked *conntrack.Kernel
	s.node.Do(func() {
		var err error
		if tracked, err = conntrack.Open(); err != nil {
			s.t.Fatal(err)
		}
	})
	s.t.Cleanup(tracked.Close)
	return func() {
		s.t.Helper()
		s.apply()
		if _, err := tracked.Apply(s.planner.Flush()); err != nil {
			s.t.Fatal(err)
		}
	}
}

// flow returns a function that asks the cluster IP over UDP from outside, always
// from the same port, and returns the server's name; "" is no answer.
func (s *site) flow() func(patience time.Duration) string {
	s.t.Helper()
	var c net.PacketConn
	s.outside.Do(func() {
		var err error
		if c, err = net.ListenPacket("udp", ":0"); err != nil {
			s.t.Fatal(err)
		}
	})
	s.t.Cleanup(func() { c.Close() })
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(s.family.clusterIP), 80))
	return func(patience time.Duration) string {
		s.t.Helper()
		if _, err := c.WriteTo([]byte("?"), to); err != nil {
			s.t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		b := make([]byte, 100)
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return ""
		}
		name, _, _ := strings.Cut(string(b[:n]), " ")
		return name
	}
}
