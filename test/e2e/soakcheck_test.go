package e2e

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/test/testlab"
)

// learn has the lab say which pods live.
func (s *soaking) learn(t *testing.T) {
	t.Helper()
	status, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	s.pods = map[string]lab.PodStatus{}
	for _, p := range status.Pods {
		if p.Labels["app"] == "soak" {
			s.pods[p.Name] = p
			if s.task[p.Name] == "" {
				s.task[p.Name] = s.Task(t, lab.Pod("default", p.Name))
			}
		}
	}
}

// room is the number of addresses that a pod of the node can get: those of its own
// blocks, of free blocks, and of blocks without pods that other nodes can give up.
func (s *soaking) room(t *testing.T, node string) (n int) {
	t.Helper()
	blocks := s.blocksIn(t, soakRange)
	for _, p := range s.pools {
		first := p.prefix.Addr()
		last := lastOf(p.prefix)
		for block := netip.PrefixFrom(first, p.bits); !p.disabled && p.prefix.Overlaps(block); block = netip.PrefixFrom(lastOf(block).Next(), p.bits) {
			free := 1<<(32-p.bits) - len(s.podsIn(block))
			for _, edge := range []netip.Addr{first, last} {
				if block.Contains(edge) {
					free--
				}
			}
			for other, owner := range blocks {
				mine := other == block && owner == node
				if other.Overlaps(block) && !mine && (s.down[owner] > 0 || len(s.podsIn(other)) > 0) {
					free = 0
				}
			}
			n += max(free, 0)
		}
	}
	return n
}

// lastOf is the last address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|^uint32(0)>>p.Bits())
	return netip.AddrFrom4(a)
}

// judge tells whether a node's attachments were refused with reason. If the node has
// room now, because that came meanwhile, an attachment succeeds.
func (s *soaking) judge(t *testing.T, node, problem string) {
	t.Helper()
	if s.down[node] > 0 || s.room(t, node) == 0 {
		s.counts["nodes without addresses"]++
		return
	}
	s.counts["nodes without addresses for a while"]++
	began := time.Now()
	for tries := 1; ; tries++ {
		delete(s.refused, node)
		s.run(t, node, 1)()
		if s.refused[node] == "" {
			t.Logf("round %d: %s got an address after %d tries and %s", s.counts["rounds"], node, tries, time.Since(began).Round(time.Millisecond))
			s.learn(t)
			return
		}
		if time.Since(began) > giveTime {
			t.Errorf("%s has room for %d pods, but after %s: %s; first: %s", node, s.room(t, node), giveTime, s.refused[node], problem)
			return
		}
	}
}

// addressesAreRight asks each pod's namespace for its addresses, and its node for the
// routes to them.
func (s *soaking) addressesAreRight(t *testing.T) {
	t.Helper()
	routes := map[string]map[string]bool{}
	for _, node := range s.Config.NodeNames() {
		routes[node] = map[string]bool{}
		err := space.In(s.tasks["node/"+node], func() error {
			list, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
			for _, r := range list {
				if r.Dst != nil {
					routes[node][r.Dst.IP.String()] = true
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	holders := map[string]string{}
	for name, p := range s.pods {
		err := space.In(s.task[name], func() error {
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			has, err := eth0.Addrs()
			if err != nil {
				return err
			}
			for _, want := range p.Addresses {
				if !slices.ContainsFunc(has, func(a net.Addr) bool { return a.(*net.IPNet).IP.String() == want.String() }) {
					return fmt.Errorf("it has %v, not %s", has, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Errorf("pod %s of %s: %v", name, p.Node, err)
		}
		for _, a := range p.Addresses {
			if other := holders[a.String()]; other != "" {
				t.Errorf("pods %s and %s both have %s", name, other, a)
			}
			if holders[a.String()] = name; !routes[p.Node][a.String()] {
				t.Errorf("%s has no route to %s of pod %s", p.Node, a, name)
			}
		}
	}
}

// podsAreReached connects to some pods from other nodes. Nothing listens in a pod, and
// it says so.
func (s *soaking) podsAreReached(t *testing.T) {
	t.Helper()
	names := slices.Sorted(maps.Keys(s.pods))
	s.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names[:min(3, len(names))] {
		p := s.pods[name]
		for _, node := range s.Config.NodeNames() {
			if node == p.Node || s.down[node] > 0 {
				continue
			}
			testlab.Eventually(t, patience, func() error {
				if got := testlab.Probe(s.tasks["node/"+node], "tcp", netip.AddrPortFrom(p.Address(), greetPort), time.Second); got != testlab.Refused {
					return fmt.Errorf("%s to %s (%s) of %s: %s, want %s", node, name, p.Address(), p.Node, got, testlab.Refused)
				}
				return nil
			})
		}
	}
}

// end removes all, and waits until what was there is gone.
func (s *soaking) end(t *testing.T) {
	t.Helper()
	for node := range s.down {
		s.control(t, node, lab.Start)
	}
	clear(s.down)
	s.remove(t, len(s.pods))()
	for name := range s.pools {
		if name != "soak-0" {
			testlab.Eventually(t, patience, func() error { return s.deletePool(t, name) })
		}
	}
	testlab.Eventually(t, 2*giveTime, func() error {
		spare := map[string]int{}
		for block, node := range s.blocksIn(t, soakRange) {
			if !s.pools["soak-0"].prefix.Overlaps(block) {
				return fmt.Errorf("%s has block %s of a pool that is deleted", node, block)
			}
			if spare[node] += 1 << (32 - block.Bits()); spare[node] > spareAddresses {
				return fmt.Errorf("%s has no pods and keeps %d addresses", node, spare[node])
			}
		}
		for _, node := range s.Config.NodeNames() {
			for _, line := range s.state(t, node) {
				if strings.Contains(line, "10.98.") && !strings.Contains(line, "10.98.0.") {
					return fmt.Errorf("%s has %s", node, line)
				}
			}
		}
		if out, err := s.Twill(t.Context(), "", "status"); err != nil || !strings.Contains(out, "nothing is wrong") {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}
