package plan_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/plan"
)

// site is a node with two pods and, on its other side, a client outside the
// cluster. The plan's rules are in the node's kernel.
type site struct {
	t       testing.TB
	planner *plan.Planner
	kernel  *nft.Kernel
	node    *testnet.NS
	pods    [2]*testnet.NS
	outside *testnet.NS
	family  siteFamily
}

type siteFamily struct {
	name                        string
	nodePod                     [2]string // the node's end of the pods' links
	pod                         [2]string
	nodeOutside, outside        string
	clusterIP, other, elsewhere string
	remote                      string // a pod of another node
	unattached                  string // a pod that the planner does not know
	length                      int
}

var siteFamilies = []siteFamily{
	{"IPv4", [2]string{"10.244.1.1", "10.244.2.1"}, [2]string{"10.244.1.2", "10.244.2.2"},
		"192.168.7.1", "192.168.7.2", "10.1.0.10", "10.1.0.11", "203.0.113.1", "10.244.9.2", "10.244.3.2", 24},
	{"IPv6", [2]string{"fd00:1::1", "fd00:2::1"}, [2]string{"fd00:1::2", "fd00:2::2"},
		"fd00:7::1", "fd00:7::2", "fd10::a", "fd10::b", "2001:db8::1", "fd00:9::2", "fd00:3::2", 64},
}

// eachFamily runs the test on a site of its own for IPv4 and IPv6.
func eachFamily(t *testing.T, test func(t *testing.T, s *site)) {
	for _, f := range siteFamilies {
		t.Run(f.name, func(t *testing.T) { test(t, newSite(t, f)) })
	}
}

func newSite(t testing.TB, f siteFamily) *site {
	s := &site{t: t, family: f, node: testnet.New(t), outside: testnet.New(t)}
	s.node.Sysctl(t, "ipv4/ip_forward", "1")
	s.node.Sysctl(t, "ipv6/conf/all/forwarding", "1")
	// Neither silence of the kernel is what these tests are about.
	s.node.Sysctl(t, "ipv4/icmp_ratelimit", "0")
	s.node.Sysctl(t, "ipv6/icmp/ratelimit", "0")
	for _, ns := range []*testnet.NS{s.node, s.outside} {
		ns.Sysctl(t, "ipv6/conf/default/accept_dad", "0")
	}
	anywhere := map[bool]string{true: "0.0.0.0/0", false: "::/0"}[netip.MustParseAddr(f.clusterIP).Is4()]
	for i := range s.pods {
		s.pods[i] = testnet.New(t)
		s.pods[i].Sysctl(t, "ipv6/conf/default/accept_dad", "0")
		link := fmt.Sprintf("tw-%d", i)
		testnet.Pair(t, s.node, s.pods[i], link, "eth0")
		s.node.Address(t, link, fmt.Sprintf("%s/%d", f.nodePod[i], f.length))
		s.pods[i].Address(t, "eth0", fmt.Sprintf("%s/%d", f.pod[i], f.length))
		s.pods[i].Route(t, anywhere, f.nodePod[i])
		s.serve(s.pods[i], fmt.Sprintf("pod%d", i))
	}
	testnet.Pair(t, s.node, s.outside, "up0", "eth0")
	s.node.Address(t, "up0", fmt.Sprintf("%s/%d", f.nodeOutside, f.length))
	s.outside.Address(t, "eth0", fmt.Sprintf("%s/%d", f.outside, f.length))
	s.node.Route(t, anywhere, f.outside)
	s.outside.Route(t, anywhere, f.nodeOutside)

	s.planner = plan.NewPlanner("here")
	s.planner.Put(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "here"},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: f.nodeOutside}}},
	})
	s.planner.SetUnderlay(fabric.Underlay{Link: "up0", MTU: 1500,
		Prefixes: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(f.nodeOutside), f.length)}})
	for i := range s.pods {
		s.planner.SetLocal(s.pod(i))
	}
	s.node.Do(func() {
		var err error
		if s.kernel, err = nft.Open(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { s.kernel.Close() })
	s.apply()
	return s
}

// remotePod makes a pod of another node, which is at the other end of a tunnel and
// answers only to the node's address, and returns its address.
func (s *site) remotePod() string {
	s.t.Helper()
	pod, tunnel := testnet.New(s.t), "twill-vxlan"
	pod.Sysctl(s.t, "ipv6/conf/default/accept_dad", "0")
	testnet.Pair(s.t, s.node, pod, tunnel, "eth0")
	addr := netip.MustParseAddr(s.family.remote)
	pod.Address(s.t, "eth0", netip.PrefixFrom(addr, addr.BitLen()).String())
	s.reach(s.node, tunnel, s.family.remote, pod, "eth0")
	s.reach(pod, "eth0", s.family.nodeOutside, s.node, tunnel)
	s.serve(pod, "remote")
	return s.family.remote
}

// reach routes an address by a device to a device at the other end of the link, which
// does not have it.
func (s *site) reach(from *testnet.NS, dev, address string, to *testnet.NS, peer string) {
	s.t.Helper()
	end, err := to.Netlink().LinkByName(peer)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, args := range [][]string{
		{"route", "add", address, "dev", dev},
		{"neigh", "replace", address, "lladdr", end.Attrs().HardwareAddr.String(), "dev", dev},
	} {
		if out, err := from.Command("ip", args...).CombinedOutput(); err != nil {
			s.t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
}

// pod describes a pod to the planner.
func (s *site) pod(i int, ports ...api.WorkloadEndpointPort) plan.Local {
	return plan.Local{
		Pod:           api.Key{Namespace: "default", Name: fmt.Sprintf("pod%d", i)},
		HostInterface: fmt.Sprintf("tw-%d", i),
		Addrs:         []netip.Addr{netip.MustParseAddr(s.family.pod[i])},
		Ports:         ports,
	}
}

// podSysctls sets what the plan asks of the pods' devices.
func (s *site) podSysctls() {
	s.t.Helper()
	for path, value := range s.planner.Flush().Sysctls.All() {
		if strings.HasPrefix(path, "net/ipv4/conf/tw-") {
			s.node.Sysctl(s.t, strings.TrimPrefix(path, "net/"), value)
		}
	}
}

// serve answers on port 8080, over TCP and UDP, with the server's name and the
// client's address.
func (s *site) serve(ns *testnet.NS, name string) {
	var l net.Listener
	var u net.PacketConn
	ns.Do(func() {
		var err error
		if l, err = net.Listen("tcp", ":8080"); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { l.Close() })
		if u, err = net.ListenPacket("udp", ":8080"); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { u.Close() })
	})
	answer := func(a net.Addr) string {
		return name + " " + netip.MustParseAddrPort(a.String()).Addr().Unmap().String()
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, answer(c.RemoteAddr()))
			c.Close()
		}
	}()
	go func() {
		var b [16]byte
		for {
			_, from, err := u.ReadFrom(b[:])
			if err != nil {
				return
			}
			u.WriteTo([]byte(answer(from)), from)
		}
	}()
}

var errTimeout = errors.New("no answer")

// ask connects from a namespace and returns the server's name and the client's
// address as the server sees it. Errors are errTimeout and
// syscall.ECONNREFUSED.
func (s *site) ask(ns *testnet.NS, network, host string, port int) (server, client string, err error) {
	s.t.Helper()
	return s.askPatiently(ns, network, host, port, 5*time.Second)
}

// silent asks where no answer is expected.
func (s *site) silent(ns *testnet.NS, network, host string, port int) bool {
	s.t.Helper()
	_, _, err := s.askPatiently(ns, network, host, port, 300*time.Millisecond)
	return err == errTimeout
}

func (s *site) askPatiently(ns *testnet.NS, network, host string, port int, patience time.Duration) (server, client string, err error) {
	s.t.Helper()
	target := net.JoinHostPort(host, fmt.Sprint(port))
	var c net.Conn
	ns.Do(func() { c, err = net.DialTimeout(network, target, patience) })
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if network == "udp" {
			_, err = c.Write([]byte("?"))
		}
	}
	var reply []byte
	if err == nil {
		b := make([]byte, 100)
		var n int
		n, err = c.Read(b)
		reply = b[:n]
	}
	switch {
	case err == nil:
		server, client, _ = strings.Cut(string(reply), " ")
		return server, client, nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPERM):
		// What is refused on its way out also fails at once, as not permitted.
		return "", "", syscall.ECONNREFUSED
	case os.IsTimeout(err):
		return "", "", errTimeout
	}
	s.t.Fatalf("%s %s: %v", network, target, err)
	return "", "", err
}

// servers asks n times and returns who answered.
func (s *site) servers(ns *testnet.NS, network, host string, port, n int) []string {
	s.t.Helper()
	seen := map[string]bool{}
	for range n {
		server, _, err := s.ask(ns, network, host, port)
		if err != nil {
			s.t.Fatalf("%s to %s port %d: %v", network, host, port, err)
		}
		seen[server] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// apply brings what changed in the plan to the node's kernel, and sees to it
// that nft can print everything.
func (s *site) apply() {
	s.t.Helper()
	if _, err := s.kernel.Apply(s.planner.Flush()); err != nil {
		s.t.Fatal(err)
	}
	s.list()
}

// forgetConnections empties connection tracking, so that a new client that
// happens to use an old one's port is not taken for it.
func (s *site) forgetConnections() {
	s.t.Helper()
	if err := s.node.Netlink().ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		s.t.Fatal(err)
	}
}

// list prints the ruleset as a person would.
func (s *site) list() string {
	s.t.Helper()
	out, err := s.node.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		s.t.Fatalf("nft list ruleset: %v\n%s", err, out)
	}
	return string(out)
}
