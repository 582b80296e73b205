package faults

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/load"
	"github.com/twill-net/twill/test/testlab"
)

// TestLinkDown takes a node's network device down and up again, with each back
// end. With the device the kernel takes down the routes that lead through it. What
// is sent meanwhile can't arrive, and what waits for an answer gets it when the
// device is back.
func TestLinkDown(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newScene(t, lab.Config{})
	s.lostAfter = 4 * time.Second // some are
	const node, down = "node01", time.Second
	gateway := s.Config.NodeAddresses(0)[0].As4()
	gateway[3] = 1
	for _, backend := range []string{"vxlan", "host-gw"} {
		t.Run(backend, func(t *testing.T) {
			if _, err := s.Twill(t.Context(), "", "fabric", "set", backend); err != nil {
				t.Fatal(err)
			}
			s.awaitBackend(t, backend)
			e := s.underLoad(t, fmt.Sprintf("a node's device down for %s, %s", down, backend), func() (time.Duration, string) {
				s.at(t, node, "ip link set eth0 down")
				<-time.After(down)
				began := time.Now()
				// The host's routes are the host's to put back.
				s.at(t, node, fmt.Sprintf("ip link set eth0 up && ip route add default via %s", netip.AddrFrom4(gateway)))
				testlab.Eventually(t, patience, func() error {
					at := netip.AddrPortFrom(s.pods["server-1"].address, 80)
					if seen := testlab.Probe(s.pods["client"].task, "udp", at, 50*time.Millisecond); seen != testlab.Open {
						return fmt.Errorf("server-1: %s", seen)
					}
					return nil
				})
				took := time.Since(began)
				s.expect(t, "client -> server-1 server-2", "stranger -> server-1 server-2")
				s.settled(t)
				return took, "its pods were reached from another node"
			})
			for _, r := range slices.Concat(e.results, e.lasting) {
				// A datagram is not sent again: half of them go to this node.
				most := 0
				if target, _ := load.ParseTarget(r.Target); target.Kind == load.UDP {
					most = int(rate * (down + e.repair + time.Second).Seconds())
				}
				if r.Lost > most {
					t.Errorf("%d lost, want at most %d: %s", r.Lost, most, r)
				}
			}
		})
	}
	s.asPlanned(t)
}

// awaitBackend waits until the nodes of the client and of a server send by the
// back end, both ways.
func (s *scene) awaitBackend(t *testing.T, backend string) {
	t.Helper()
	device := map[string]string{"vxlan": "twill-vxlan", "host-gw": "eth0"}[backend]
	testlab.Eventually(t, patience, func() error {
		for from, to := range map[string]string{"master": "server-1", "node01": "client"} {
			out, err := s.At(t.Context(), lab.Node(from), "ip", "-o", "route", "get", s.pods[to].address.String())
			if err != nil {
				return err
			}
			var via, gateway, dev, name string
			if _, err := fmt.Sscan(out, new(string), &via, &gateway, &dev, &name); err != nil || name != device {
				return fmt.Errorf("%s reaches %s by %s", from, to, out)
			}
		}
		return nil
	})
}
