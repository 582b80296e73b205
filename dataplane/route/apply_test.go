package route_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/plan"
)

var comparePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func (n *node) show(command string) string {
	n.t.Helper()
	return strings.Join(strings.Fields(n.run(command)), " ")
}

// fails applies and returns the error that there must be.
func (n *node) fails(want ...string) error {
	n.t.Helper()
	_, err := n.try()
	for _, text := range want {
		if err == nil || !strings.Contains(err.Error(), text) {
			n.t.Fatalf("error %v, want %q", err, text)
		}
	}
	return err
}

// What a plan no longer wants goes, what others made stays.
func TestLeftoversGoForeignStays(t *testing.T) {
	a, b := twoNodes(t)
	a.planTunnel(false)
	a.viaTunnel(b, false)
	a.apply()
	for _, command := range []string{
		"ip route add 198.51.100.0/24 via 172.16.10.2",
		"ip route add 198.51.101.0/24 via 172.16.10.2 proto 84 table 77",
		"ip link add br0 type bridge", "ip link set br0 up", "ip addr add 198.51.102.1/24 dev br0",
		"ip neigh add 198.51.102.2 dev br0 lladdr 02:00:00:00:00:01 nud permanent",
		// Leftovers of an earlier plan, as a crashed agent may have them.
		"ip route add 192.0.2.0/24 via 172.16.10.2 proto 84",
		"ip -6 route add 2001:db8::/64 via fd00:a::2 proto 84",
		"ip neigh add 192.0.2.1 dev twill-vxlan lladdr 02:00:00:00:00:01 nud permanent",
		"bridge fdb add 02:00:00:00:00:01 dev twill-vxlan dst 172.16.10.9 self",
		"ip addr add 192.0.2.1/32 dev twill-vxlan",
	} {
		a.run(command)
	}
	foreign := func() string {
		return a.show("ip route show proto boot") + a.show("ip neigh show dev br0 nud permanent") + a.show("ip -4 addr show dev br0")
	}
	before := foreign()
	a.open() // a new agent
	if w := a.apply(); w != 5 {
		t.Errorf("%d writes, want one for each of 5 leftovers", w)
	}
	a.settled()
	if after := foreign(); after != before {
		t.Errorf("foreign state was changed:\n%s\n%s", before, after)
	}
	// The whole plan goes.
	a.plan = plan.New()
	a.open()
	a.apply()
	a.settled()
	if got := a.show("ip route show proto 84") + a.show("ip -6 route show proto 84") + a.show("ip link show type vxlan"); got != "" {
		t.Errorf("left: %s", got)
	}
	if after := foreign(); after != before {
		t.Errorf("foreign state was changed:\n%s\n%s", before, after)
	}
	a.run("ip link show dev " + a.veth) // a pod's link is not the plan's to delete
}

func TestForeignRouteIsNotTouched(t *testing.T) {
	for _, test := range []struct{ v6, found, replaced bool }{{false, true, false}, {true, true, false}, {false, false, true}, {true, false, true}} {
		t.Run(fmt.Sprintf("%+v", test), func(t *testing.T) {
			a, b := twoNodes(t)
			prefix := b.block(test.v6).String()
			foreign := "via " + netip.MustParseAddr(map[bool]string{false: "172.16.10.9", true: "fd00:a::9"}[test.v6]).String()
			command := "ip route replace " + prefix + " " + foreign + " proto static"
			if test.found {
				a.run(command)
			}
			a.direct(b)
			if test.replaced {
				a.apply()
				a.run(command)
			}
			a.fails("another program has this prefix", foreign, "proto static")
			a.fails("another program has this prefix") // stays dirty
			ip := map[bool]string{false: "ip -4 route show ", true: "ip -6 route show "}
			if got := a.show(ip[test.v6] + prefix); !strings.Contains(got, foreign) || strings.Contains(got, "proto 84") {
				t.Errorf("route is %s", got)
			}
			other := b.block(!test.v6).String()
			if got := a.show(ip[!test.v6] + other); !strings.Contains(got, "proto 84") {
				t.Errorf("the other route was held up: %q", got)
			}
			a.watch()
			a.run("ip route del " + prefix)
			eventually(t, "our route", func() bool { return strings.Contains(a.show(ip[test.v6]+prefix), "proto 84") })
			a.settled()
		})
	}
}

func TestOneFailureHoldsUpNothing(t *testing.T) {
	a, b := twoNodes(t)
	a.direct(b)
	p := a.plan
	p.Links.Set("tw-gone", plan.Link{Kind: plan.LinkVeth, MTU: 1450})
	p.Routes.Set(netip.MustParsePrefix("10.244.1.77/32"), plan.Route{Link: "tw-gone"})
	p.Routes.Set(netip.MustParsePrefix("10.244.1.78/32"), plan.Route{Link: "tw-gone"})
	p.Sysctls.Set("net/ipv4/conf/tw-gone/proxy_arp", "1")
	p.Sysctls.Set("net/ipv4/no_such_setting", "1")
	p.Sysctls.Set("net/ipv4/ip_default_ttl", "many")
	p.Sysctls.Set("../../etc/passwd", "x")
	p.Routes.Set(netip.MustParsePrefix("192.0.2.0/24"), plan.Route{Link: "eth0", Gateway: netip.MustParseAddr("203.0.113.1")})
	p.Routes.Set(netip.MustParsePrefix("192.0.3.0/24"), plan.Route{Link: "eth0", Gateway: b.underlay(false), Source: netip.MustParseAddr("203.0.113.1")})
	p.Links.Set("twill-odd", plan.Link{Kind: "gre"})
	err := a.fails("veth missing: tw-gone; attach its pod again (waiting for it: sysctl: 1, route: 2)",
		"set sysctl net/ipv4/no_such_setting=1: the kernel has no such setting", "set sysctl net/ipv4/ip_default_ttl=many: invalid argument",
		"not a path below /proc/sys", "add route 192.0.2.0/24 via 203.0.113.1 dev eth0: no address of eth0 reaches the gateway",
		"is the source 203.0.113.1 an address of this node?", `its kind "gre" is not known`)
	var missing *route.MissingLinkError
	if !errors.As(err, &missing) || missing.Link != "tw-gone" || !missing.Veth {
		t.Errorf("missing link: %+v", missing)
	}
	b.direct(a)
	b.apply()
	b.serve()
	reaches(t, a.pod, b)
	dirty := p.Sysctls.DirtyLen() + p.Links.DirtyLen() + p.Routes.DirtyLen()
	if dirty != 10 {
		t.Errorf("%d keys are dirty, want the 10 that failed", dirty)
	}
}

func TestErrorsAreBounded(t *testing.T) {
	a, _ := twoNodes(t)
	for i := range 1000 {
		a.plan.Routes.Set(netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 32),
			plan.Route{Link: "eth0", Gateway: netip.MustParseAddr("203.0.113.1")})
	}
	err := a.fails("and 980 more failed")
	if n := strings.Count(err.Error(), "\n"); n != 20 {
		t.Errorf("%d lines", n+1)
	}
}

func TestTunnelProblems(t *testing.T) {
	a, b := twoNodes(t)
	a.run("ip link add flannel.1 type vxlan id 1 dstport 8472 local 172.16.10.1 dev eth0")
	a.planTunnel(false)
	a.viaTunnel(b, false)
	a.fails("flannel.1 has this VNI and port", "link twill-vxlan is missing (waiting for it: sysctl: 1, address: 1, neighbour: 2, forwarding entry: 1, route: 2)")
	a.run("ip link del flannel.1")
	a.run("ip link add twill-vxlan type bridge")
	a.kernel.Resync()
	a.fails("link twill-vxlan is a bridge made by somebody else")
	a.run("ip link del twill-vxlan")
	l, _ := a.plan.Links.Get(plan.VXLANLink)
	l.MTU = 9000
	a.plan.Links.Set(plan.VXLANLink, l)
	a.fails("set the MTU of twill-vxlan to 9000 (it is 1450)", "more than the MTU of eth0")
	l.MTU, l.Underlay = 1450, "eth9"
	a.plan.Links.Set(plan.VXLANLink, l)
	a.fails("link eth9 is missing")
	l.Underlay = "eth0"
	a.plan.Links.Set(plan.VXLANLink, l)
	a.apply()
	a.settled()
}

// A tunnel whose parameters change is made anew with all that was on it.
func TestTunnelIsMadeAnew(t *testing.T) {
	a, b := twoNodes(t)
	for _, n := range [][2]*node{{a, b}, {b, a}} {
		n[0].planTunnel(false)
		n[0].viaTunnel(n[1], false)
		n[0].apply()
	}
	b.serve()
	for _, n := range []*node{a, b} {
		l, _ := n.plan.Links.Get(plan.VXLANLink)
		l.VNI, l.Port = 7, 4789
		n.plan.Links.Set(plan.VXLANLink, l)
		n.apply()
		n.settled()
	}
	reaches(t, a.pod, b)
	// Another MAC is set in place, on both sides of the path.
	l, _ := b.plan.Links.Get(plan.VXLANLink)
	l.MAC[5] = 0x77
	b.plan.Links.Set(plan.VXLANLink, l)
	b.apply()
	b.settled()
	a.plan.FDB.Set(plan.FDBKey{Link: plan.VXLANLink, MAC: l.MAC}, b.underlay(false))
	a.plan.FDB.Delete(plan.FDBKey{Link: plan.VXLANLink, MAC: b.mac()})
	for _, v6 := range []bool{false, true} {
		a.plan.Neighbours.Set(plan.NeighbourKey{Link: plan.VXLANLink, IP: b.block(v6).Addr()}, l.MAC)
	}
	a.apply()
	a.settled()
	reaches(t, a.pod, b)
}

func TestPodIsAttachedAgain(t *testing.T) {
	a, _ := twoNodes(t)
	a.apply()
	a.run("ip link del " + a.veth)
	a.fails("veth missing: " + a.veth)
	a.watch()
	a.mu.Lock()
	a.attach()
	a.mu.Unlock()
	a.serve()
	eventually(t, "the pod's route", func() bool { return strings.Contains(a.run("ip route show proto 84"), a.veth) })
	if _, err := a.try(); err != nil {
		t.Fatal(err)
	}
	reaches(t, a.ns, a)
}

func TestCleanup(t *testing.T) {
	a, b := twoNodes(t)
	a.planTunnel(false)
	a.viaTunnel(b, false)
	a.run("ip link add br0 type bridge")
	a.run("ip route add 198.51.100.0/24 via 172.16.10.2")
	before := a.show("ip route show proto boot") + a.show("ip -br link show type bridge")
	a.apply()
	a.run("ip route add 198.51.101.0/24 via 172.16.10.2 proto 84 table 77")
	clean := func() (removed []string) {
		a.ns.Do(func() {
			var err error
			if removed, err = route.Cleanup(nil); err != nil {
				t.Fatal(err)
			}
		})
		return removed
	}
	want := []string{"route 10.244.1.2/32", "route fd00:244:0:2::/64", "route 198.51.101.0/24", "link " + plan.VXLANLink, "link " + a.veth}
	removed := strings.Join(clean(), "\n")
	for _, w := range want {
		if !strings.Contains(removed, w) {
			t.Errorf("%q was not removed; removed:\n%s", w, removed)
		}
	}
	if again := clean(); again != nil {
		t.Errorf("a second run removed %v", again)
	}
	if left := a.show("ip route show table all proto 84") + a.show("ip -6 route show table all proto 84") + a.show("ip link show type vxlan"); left != "" {
		t.Errorf("left: %s", left)
	}
	if got := a.show("ip -o link"); strings.Contains(got, plan.VethPrefix) {
		t.Errorf("left: %s", got)
	}
	if after := a.show("ip route show proto boot") + a.show("ip -br link show type bridge"); after != before {
		t.Errorf("foreign state was changed: %s", after)
	}
}

func TestDetectUnderlay(t *testing.T) {
	ns := testnet.New(t)
	testnet.Pair(t, ns, testnet.New(t), "eth0", "eth0")
	testnet.Pair(t, ns, testnet.New(t), "eth1", "eth0")
	ns.Address(t, "eth0", "192.0.2.1/24")
	ns.Address(t, "eth0", "192.0.2.2/24")
	ns.Address(t, "eth0", "2001:db8::1/64")
	ns.Address(t, "eth1", "198.51.100.1/24")
	detect := func(ips ...string) (u fabric.Underlay, err error) {
		var addrs []netip.Addr
		for _, ip := range ips {
			addrs = append(addrs, netip.MustParseAddr(ip))
		}
		ns.Do(func() { u, err = route.DetectUnderlay(addrs) })
		return u, err
	}
	check := func(want fabric.Underlay, ips ...string) {
		t.Helper()
		got, err := detect(ips...)
		if diff := cmp.Diff(want, got, comparePrefix); err != nil || diff != "" {
			t.Errorf("%v: %v; -want +got:\n%s", ips, err, diff)
		}
	}
	refuse := func(want string, ips ...string) {
		t.Helper()
		if _, err := detect(ips...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want %q", ips, err, want)
		}
	}
	prefixes := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	refuse("there is no default route")
	if out, err := ns.Command("ip", "route", "add", "default", "via", "198.51.100.2", "metric", "500").CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	check(fabric.Underlay{Link: "eth1", Prefixes: prefixes("198.51.100.1/24"), MTU: 1500})
	ns.Route(t, "0.0.0.0/0", "192.0.2.9") // metric 0 is better
	check(fabric.Underlay{Link: "eth0", Prefixes: prefixes("192.0.2.1/24", "2001:db8::1/64"), MTU: 1500})
	check(fabric.Underlay{Link: "eth1", Prefixes: prefixes("198.51.100.1/24"), MTU: 1500}, "198.51.100.1")
	check(fabric.Underlay{Link: "eth0", Prefixes: prefixes("192.0.2.2/24", "2001:db8::1/64"), MTU: 1500}, "2001:db8::1", "192.0.2.2")
	refuse("no device has the node address 203.0.113.1", "203.0.113.1")
	refuse("on different devices", "192.0.2.1", "198.51.100.1")
	refuse("loopback", "127.0.0.1")
}

// TestAnAddressIsKept while a device has it; where one has to be chosen, those with a
// network come before virtual addresses.
func TestAnAddressIsKept(t *testing.T) {
	ns := testnet.New(t)
	for _, link := range []string{"eth0", "tun0"} {
		testnet.Pair(t, ns, testnet.New(t), link, "eth0")
	}
	run := func(commands ...string) {
		t.Helper()
		for _, command := range commands {
			if out, err := ns.Command("sh", "-c", command).CombinedOutput(); err != nil {
				t.Fatalf("%s: %s", command, out)
			}
		}
	}
	check := func(when, want string, present ...string) {
		t.Helper()
		var addrs []netip.Addr
		for _, p := range present {
			addrs = append(addrs, netip.MustParseAddr(p))
		}
		ns.Do(func() {
			host, err := route.ReadHost()
			if err != nil {
				t.Fatal(err)
			}
			find := func() (fabric.Underlay, error) { return host.Keep(addrs) }
			if len(present) == 0 {
				find = func() (fabric.Underlay, error) { return host.Underlay(nil) }
			}
			u, err := find()
			got := fmt.Sprint(u.Link, u.Prefixes)
			if errors.Is(err, route.ErrNoAddress) {
				got = "none"
			}
			if got != want {
				t.Errorf("%s: %s (%v), want %s", when, got, err, want)
			}
		})
	}
	run("ip addr add 172.16.10.50/32 dev eth0", "ip addr add 172.16.10.11/24 dev eth0", "ip route add default via 172.16.10.1 metric 100")
	check("a virtual address is first", "eth0[172.16.10.11/24]")
	run("ip -6 addr add fd00:16::11/64 dev eth0 nodad")
	check("another family came", "eth0[172.16.10.11/24 fd00:16::11/64]", "172.16.10.11")
	run("ip addr add 10.8.0.2/24 dev tun0", "ip route add default via 10.8.0.1 dev tun0 metric 50")
	check("a VPN has the default route", "eth0[172.16.10.11/24 fd00:16::11/64]", "172.16.10.11", "fd00:16::11")
	check("a VPN has the default route, and nothing is present", "tun0[10.8.0.2/24]")
	run("ip addr del 172.16.10.11/24 dev eth0")
	check("one family is gone", "eth0[172.16.10.50/32 fd00:16::11/64]", "172.16.10.11", "fd00:16::11")
	check("it is gone", "none", "172.16.10.11")
	run("ip addr add 172.16.10.11/24 dev eth0", "ip link set eth0 down")
	check("its device is down", "none", "172.16.10.11")
}

// TestWatchTellsOfTheHost: what the agent reads of devices that aren't ours is read
// again when it changes, and not when only what is ours does.
func TestWatchTellsOfTheHost(t *testing.T) {
	a, _ := twoNodes(t)
	a.planTunnel(false)
	a.apply()
	changes := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error)
	go func() { watched <- a.kernel.Watch(ctx, func() {}, func() { changes <- struct{}{} }) }()
	defer func() {
		cancel()
		if err := <-watched; err != nil {
			t.Error(err)
		}
	}()
	// The first reading is told once Watch runs.
	for deadline := time.Now().Add(patience); len(changes) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("not told of the first reading")
		}
		a.kernel.Resync()
		a.apply()
	}
	for _, c := range []struct {
		command string
		want    bool
	}{
		{"ip link set eth0 mtu 1400", true},
		{"ip link set twill-vxlan mtu 1300", false},
		{"ip addr add 203.0.113.7/32 dev eth0", true},
		{"ip route add default via 203.0.113.8 dev eth0 onlink", true},
		{"ip route add 198.51.100.0/24 dev eth0", false},
		{"ip route replace default via 203.0.113.8 dev eth0 onlink metric 7", true},
		{"ip link add br0 type bridge", false},
		{"ip link set br0 up", true},
		{"ip addr del 203.0.113.7/32 dev eth0", true},
		{"ip link set eth0 down", true},
		{"ip link set eth0 name nic0", true},
	} {
		for len(changes) > 0 {
			<-changes
		}
		if out, err := a.ns.Command("sh", "-c", c.command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s", c.command, out)
		}
		select {
		case <-changes:
			if !c.want {
				t.Errorf("%s: taken for a change of the host", c.command)
			}
		case <-time.After(map[bool]time.Duration{true: 2 * time.Second, false: 100 * time.Millisecond}[c.want]):
			if c.want {
				t.Errorf("%s: not noticed", c.command)
			}
		}
	}
}
