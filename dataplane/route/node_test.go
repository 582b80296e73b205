package route_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/dataplane/pod"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

const patience = 10 * time.Second

// node is a node with one pod, whose plan the test writes by hand.
type node struct {
	t      testing.TB
	number int
	ns     *testnet.NS
	pod    *testnet.NS
	veth   string
	kernel *route.Kernel
	plan   *plan.Plan
	log    *logBuffer
	mu     sync.Mutex // guards plan and kernel between the test and watch
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (n *node) underlay(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:a::%d", n.number))
	}
	return netip.MustParseAddr(fmt.Sprintf("172.16.10.%d", n.number))
}

func (n *node) block(v6 bool) netip.Prefix {
	if v6 {
		return netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", n.number))
	}
	return netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n.number))
}

func (n *node) podAddr(v6 bool) netip.Addr { return n.block(v6).Addr().Next().Next() }

func (n *node) mac() plan.MAC { return plan.MAC{2, 0x74, 0, 0, 0, byte(n.number)} }

// newNode makes a node whose device eth0 is joined to nothing yet.
func newNode(t testing.TB, number int) *node {
	t.Helper()
	n := &node{t: t, number: number, ns: testnet.New(t), plan: plan.New(), log: &logBuffer{}}
	n.open()
	return n
}

// open starts anew, as after a restart of the agent.
func (n *node) open() {
	n.t.Helper()
	n.ns.Do(func() {
		k, err := route.Open(slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		if err != nil {
			n.t.Fatal(err)
		}
		n.t.Cleanup(k.Close)
		n.kernel = k
	})
}

// twoNodes are joined by their eth0 and have a pod each.
func twoNodes(t testing.TB) (a, b *node) {
	t.Helper()
	a, b = newNode(t, 1), newNode(t, 2)
	testnet.Pair(t, a.ns, b.ns, "eth0", "eth0")
	for _, n := range []*node{a, b} {
		n.ns.Address(t, "eth0", n.underlay(false).String()+"/24")
		n.ns.Address(t, "eth0", n.underlay(true).String()+"/64")
		n.planNode()
		n.attach()
	}
	return a, b
}

func (n *node) planNode() {
	n.plan.Sysctls.Set("net/ipv4/ip_forward", "1")
	n.plan.Sysctls.Set("net/ipv6/conf/all/forwarding", "1")
	n.plan.Sysctls.Set("net/ipv4/conf/all/rp_filter", "0")
	n.plan.Sysctls.Set("net/ipv4/conf/eth0/rp_filter", "2")
	n.plan.Routes.Set(n.block(false), plan.Route{Blackhole: true})
	n.plan.Routes.Set(n.block(true), plan.Route{Blackhole: true})
}

func (n *node) attach() {
	n.t.Helper()
	n.pod = testnet.New(n.t)
	n.veth = pod.HostInterfaceName(fmt.Sprint("pod", n.number), "eth0")
	v4, v6 := n.podAddr(false), n.podAddr(true)
	mac := plan.MAC{2, 0, 0, 0, 1, byte(n.number)}
	n.ns.Do(func() {
		err := pod.Attach(pod.Attachment{
			NetNS: fmt.Sprintf("/proc/self/fd/%d", n.pod.FD()), PodInterface: "eth0", ContainerID: fmt.Sprint("pod", n.number),
			HostInterface: n.veth, PodMAC: mac, Addresses: []netip.Prefix{netip.PrefixFrom(v4, 32), netip.PrefixFrom(v6, 128)}, MTU: 1450,
		})
		if err != nil {
			n.t.Fatal(err)
		}
	})
	gateway, _ := plan.ParseMAC(plan.PodGatewayMAC)
	n.plan.Links.Set(n.veth, plan.Link{Kind: plan.LinkVeth, MTU: 1450, MAC: gateway})
	n.plan.Sysctls.Set("net/ipv4/conf/"+n.veth+"/proxy_arp", "1")
	n.plan.Addresses.Set(plan.AddressKey{Link: n.veth, Prefix: netip.MustParsePrefix("fe80::1/64")}, struct{}{})
	for _, a := range []netip.Addr{v4, v6} {
		n.plan.Routes.Set(netip.PrefixFrom(a, a.BitLen()), plan.Route{Link: n.veth, Source: n.underlay(a.Is6())})
		n.plan.Neighbours.Set(plan.NeighbourKey{Link: n.veth, IP: a}, mac)
	}
}

// planTunnel asks for the vxlan device; v6 chooses the underlay's family.
func (n *node) planTunnel(v6 bool) {
	mtu := 1450
	if v6 {
		mtu = 1430
	}
	n.plan.Links.Set(plan.VXLANLink, plan.Link{
		Kind: plan.LinkVXLAN, MTU: mtu, MAC: n.mac(), VNI: 1, Port: 8472, Local: n.underlay(v6), Underlay: "eth0",
	})
	n.plan.Sysctls.Set("net/ipv4/conf/"+plan.VXLANLink+"/rp_filter", "2")
	n.plan.Addresses.Set(plan.AddressKey{Link: plan.VXLANLink, Prefix: netip.PrefixFrom(n.block(false).Addr(), 32)}, struct{}{})
}

// viaTunnel sends to the peer's pods through the tunnel.
func (n *node) viaTunnel(peer *node, underlay6 bool) {
	for _, v6 := range []bool{false, true} {
		next := peer.block(v6).Addr()
		n.plan.Neighbours.Set(plan.NeighbourKey{Link: plan.VXLANLink, IP: next}, peer.mac())
		n.plan.Routes.Set(peer.block(v6), plan.Route{Link: plan.VXLANLink, Gateway: next, OnLink: true, Source: n.underlay(v6)})
	}
	n.plan.FDB.Set(plan.FDBKey{Link: plan.VXLANLink, MAC: peer.mac()}, peer.underlay(underlay6))
}

// direct sends to the peer's pods over the link that both share.
func (n *node) direct(peer *node) {
	for _, v6 := range []bool{false, true} {
		n.plan.Routes.Set(peer.block(v6), plan.Route{Link: "eth0", Gateway: peer.underlay(v6)})
		n.plan.Neighbours.Delete(plan.NeighbourKey{Link: plan.VXLANLink, IP: peer.block(v6).Addr()})
	}
	n.plan.FDB.Delete(plan.FDBKey{Link: plan.VXLANLink, MAC: peer.mac()})
}

func (n *node) try() (writes int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ns.Do(func() { writes, err = n.kernel.Apply(n.plan) })
	return writes, err
}

func (n *node) apply() (writes int) {
	n.t.Helper()
	writes, err := n.try()
	if err != nil {
		n.t.Fatalf("node %d: %v", n.number, err)
	}
	return writes
}

// settled fails unless the kernel needs no write, in this run nor the next.
func (n *node) settled() {
	n.t.Helper()
	if w := n.apply(); w != 0 {
		n.t.Errorf("node %d: applying again wrote %d times; log:\n%s", n.number, w, n.log)
	}
	n.kernel.Resync()
	if w := n.apply(); w != 0 {
		n.t.Errorf("node %d: comparing anew wrote %d times", n.number, w)
	}
}

// watch mends drift until the test ends, as the agent does.
func (n *node) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	drift := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.kernel.Watch(ctx, func() {
			select {
			case drift <- struct{}{}:
			default:
			}
		}, func() {}); err != nil {
			n.t.Error(err)
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-drift:
				if _, err := n.try(); err != nil { // tried again at the next drift
					fmt.Fprintln(n.log, "apply:", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	n.t.Cleanup(func() { cancel(); wg.Wait() })
}

func (n *node) logs(text string) bool { return strings.Contains(n.log.String(), text) }

func (n *node) run(command string) string {
	n.t.Helper()
	words := strings.Fields(command)
	out, err := n.ns.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("node %d: %s: %v: %s", n.number, command, err, out)
	}
	return string(out)
}

// eventually polls until the condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// serve echoes UDP and TCP in the node's pod on port 7.
func (n *node) serve() {
	n.t.Helper()
	for _, v6 := range []bool{false, true} {
		at := netip.AddrPortFrom(n.podAddr(v6), 7).String()
		n.pod.Do(func() {
			udp, err := net.ListenPacket("udp", at)
			if err != nil {
				n.t.Fatal(err)
			}
			n.t.Cleanup(func() { udp.Close() })
			go func() {
				buf := make([]byte, 2048)
				for {
					size, from, err := udp.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = udp.WriteTo(buf[:size], from)
				}
			}()
			tcp, err := net.Listen("tcp", at)
			if err != nil {
				n.t.Fatal(err)
			}
			n.t.Cleanup(func() { tcp.Close() })
			go func() {
				for {
					c, err := tcp.Accept()
					if err != nil {
						return
					}
					go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
				}
			}()
		})
	}
}

func dial(t testing.TB, ns *testnet.NS, network string, to netip.Addr) (c net.Conn) {
	t.Helper()
	ns.Do(func() {
		var err error
		if c, err = net.DialTimeout(network, netip.AddrPortFrom(to, 7).String(), patience); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// reaches fails unless UDP and TCP of both families pass from a pod to the
// server in the other's.
func reaches(t testing.TB, from *testnet.NS, to *node) {
	t.Helper()
	for _, v6 := range []bool{false, true} {
		for _, network := range []string{"udp", "tcp"} {
			c := dial(t, from, network, to.podAddr(v6))
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Write([]byte("twill")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 16)
			if size, err := c.Read(buf); err != nil || string(buf[:size]) != "twill" {
				t.Fatalf("%s to %s: %q, %v", network, to.podAddr(v6), buf[:size], err)
			}
		}
	}
}
