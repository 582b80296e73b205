package route_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/twill-net/twill/dataplane/pod"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// TestInUse: what another network left of its pods is found, and nothing of
// Twill's.
func TestInUse(t *testing.T) {
	host, other, inPod := testnet.New(t), testnet.New(t), testnet.New(t)
	testnet.Pair(t, host, other, "cni0", "eth0")
	host.Address(t, "cni0", "10.244.1.1/24")
	host.Address(t, "cni0", "fd00:244::1/64")
	other.Address(t, "eth0", "10.244.1.7/24")
	link, err := host.Netlink().LinkByName("cni0")
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	single := func(text string) *net.IPNet {
		p := netip.MustParsePrefix(text)
		return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	}
	neighbour := func(ip string, state int) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP(ip), State: state, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
	}
	must(host.Netlink().RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: single("10.244.1.9/32"), Scope: netlink.SCOPE_LINK}))
	must(host.Netlink().RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: single("10.244.1.10/32"), Scope: netlink.SCOPE_LINK, Table: 77}))
	must(host.Netlink().RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: single("10.244.1.11/32"), Scope: netlink.SCOPE_LINK, Protocol: plan.RouteProtocol}))
	must(host.Netlink().RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: single("10.244.1.128/25"), Scope: netlink.SCOPE_LINK}))
	must(host.Netlink().NeighAdd(neighbour("10.244.1.7", netlink.NUD_STALE)))
	must(host.Netlink().NeighAdd(neighbour("10.244.1.8", netlink.NUD_FAILED)))
	must(host.Netlink().NeighAdd(neighbour("192.0.2.1", netlink.NUD_STALE)))
	must(host.Netlink().NeighAdd(neighbour("fd00:244::7", netlink.NUD_PERMANENT)))
	a := pod.Attachment{
		NetNS: fmt.Sprint("/proc/self/fd/", inPod.FD()), PodInterface: "eth0", ContainerID: "c0ffee", HostInterface: pod.HostInterfaceName("c0ffee", "eth0"),
		PodMAC: plan.MAC{2, 0, 0, 0, 0, 5}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.244.1.5/32")}, MTU: 1450,
	}
	host.Do(func() { must(pod.Attach(a)) })
	ours, err := host.Netlink().LinkByName(a.HostInterface)
	must(err)
	must(host.Netlink().LinkSetUp(ours))
	must(host.Netlink().RouteAdd(&netlink.Route{LinkIndex: ours.Attrs().Index, Dst: single("10.244.1.5/32"), Scope: netlink.SCOPE_LINK}))

	var got map[string][]netip.Addr
	host.Do(func() {
		got, err = route.InUse([]netip.Prefix{netip.MustParsePrefix("10.244.1.0/25"), netip.MustParsePrefix("fd00:244::/122")})
	})
	must(err)
	want := map[string][]netip.Addr{
		"interface cni0":      {netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00:244::1")},
		"a route on cni0":     {netip.MustParseAddr("10.244.1.9"), netip.MustParseAddr("10.244.1.10")},
		"a neighbour on cni0": {netip.MustParseAddr("10.244.1.7"), netip.MustParseAddr("fd00:244::7")},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); diff != "" {
		t.Error(diff)
	}
}
