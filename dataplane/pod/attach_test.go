package pod_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twill-net/twill/dataplane/pod"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
)

var (
	four = netip.MustParsePrefix("10.244.0.5/32")
	six  = netip.MustParsePrefix("fd00:244::5/128")
)

func path(ns *testnet.NS) string { return fmt.Sprintf("/proc/self/fd/%d", ns.FD()) }

// defaults are the routes that Check is told of.
var defaults = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

func attachment(ns *testnet.NS, addrs ...netip.Prefix) pod.Attachment {
	return pod.Attachment{
		NetNS: path(ns), PodInterface: "eth0", ContainerID: "c0ffee", HostInterface: pod.HostInterfaceName("c0ffee", "eth0"),
		PodMAC: plan.MAC{2, 0, 0, 0, 0, 5}, Addresses: addrs, MTU: 1450,
	}
}

func attach(t testing.TB, host *testnet.NS, a pod.Attachment) {
	t.Helper()
	host.Do(func() {
		if err := pod.Attach(a); err != nil {
			t.Fatal(err)
		}
	})
}

func detach(t testing.TB, host *testnet.NS, name string) {
	t.Helper()
	host.Do(func() {
		if err := pod.Detach(name); err != nil {
			t.Fatal(err)
		}
	})
}

func raise(t testing.TB, host *testnet.NS, name string) {
	t.Helper()
	l, err := host.Netlink().LinkByName(name)
	if err == nil {
		err = host.Netlink().LinkSetUp(l)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestAttachFamilies(t *testing.T) {
	for name, addrs := range map[string][]netip.Prefix{
		"IPv4": {four}, "IPv6": {six}, "both": {four, six},
	} {
		t.Run(name, func(t *testing.T) {
			host, inPod := testnet.New(t), testnet.New(t)
			a := attachment(inPod, addrs...)
			attach(t, host, a)
			l, err := host.Netlink().LinkByName(a.HostInterface)
			if err != nil {
				t.Fatal(err)
			}
			if l.Attrs().Flags&net.FlagUp != 0 {
				t.Error("the host end is up before the plan said so")
			}
			raise(t, host, a.HostInterface)
			host.Do(func() {
				if err := pod.Check(a, defaults); err != nil {
					t.Errorf("check: %v", err)
				}
			})
			got, err := inPod.Netlink().AddrList(nil, netlink.FAMILY_V6)
			if err != nil {
				t.Fatal(err)
			}
			if len(addrs) == 1 && addrs[0] == four && len(got) > 1 { // one is ::1
				t.Errorf("a pod without IPv6 has %v", got)
			}
			for _, addr := range got {
				if addr.IPNet.String() == six.String() && addr.Flags&0x40 != 0 {
					t.Error("the pod's IPv6 address is tentative")
				}
			}
			detach(t, host, a.HostInterface)
			detach(t, host, a.HostInterface) // idempotent
			if _, err := inPod.Netlink().LinkByName("eth0"); err == nil {
				t.Error("the pod's end is still there")
			}
		})
	}
}

func TestAttachWhereIPv6WasDisabled(t *testing.T) {
	host, inPod := testnet.New(t), testnet.New(t)
	inPod.Sysctl(t, "ipv6/conf/all/disable_ipv6", "1")
	inPod.Sysctl(t, "ipv6/conf/default/disable_ipv6", "1")
	a := attachment(inPod, four, six)
	attach(t, host, a)
	raise(t, host, a.HostInterface)
	host.Do(func() {
		if err := pod.Check(a, defaults); err != nil {
			t.Error(err)
		}
	})
}

func TestAttachRefuses(t *testing.T) {
	host, inPod := testnet.New(t), testnet.New(t)
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	attach(t, host, attachment(inPod, four))
	for name, test := range map[string]struct {
		change func(*pod.Attachment)
		want   string
	}{
		"attached already":       {func(a *pod.Attachment) { a.PodInterface = "eth1" }, "exists already"},
		"interface in pod":       {func(a *pod.Attachment) { a.HostInterface = "tw-other" }, "the pod has an interface eth0 already"},
		"no Ethernet address":    {func(a *pod.Attachment) { a.PodMAC = plan.MAC{} }, "an Ethernet address"},
		"no address":             {func(a *pod.Attachment) { a.Addresses = nil }, "at least one address"},
		"a network":              {func(a *pod.Attachment) { a.Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")} }, "want a /32 or /128"},
		"zero address":           {func(a *pod.Attachment) { a.Addresses = []netip.Prefix{{}} }, "want a /32 or /128"},
		"no namespace":           {func(a *pod.Attachment) { a.NetNS = "/nowhere" }, "no such file"},
		"the node itself":        {func(a *pod.Attachment) { a.NetNS = attachment(host, four).NetNS }, "the node's own network namespace"},
		"not a namespace":        {func(a *pod.Attachment) { a.NetNS = file }, "not a network namespace"},
		"foreign name":           {func(a *pod.Attachment) { a.HostInterface = "eth7" }, "want tw-"},
		"long name":              {func(a *pod.Attachment) { a.HostInterface = "tw-0123456789abc" }, "at most 15"},
		"name that climbs":       {func(a *pod.Attachment) { a.PodInterface = "../all" }, "without slash"},
		"small MTU":              {func(a *pod.Attachment) { a.MTU = 20 }, "out of range"},
		"too small for IPv6":     {func(a *pod.Attachment) { a.MTU, a.Addresses = 1000, []netip.Prefix{six} }, "1280"},
		"id that breaks aliases": {func(a *pod.Attachment) { a.ContainerID = "a b" }, "not allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			a := attachment(inPod, four)
			test.change(&a)
			host.Do(func() {
				if err := pod.Attach(a); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v, want %q", err, test.want)
				}
			})
		})
	}
	host.Do(func() {
		if err := pod.Detach("eth0"); err == nil {
			t.Error("a foreign interface may be detached")
		}
	})
}

func TestAttachUndoesItsWork(t *testing.T) {
	host, inPod := testnet.New(t), testnet.New(t)
	other := testnet.New(t)
	testnet.Pair(t, inPod, other, "net1", "net1")
	inPod.Address(t, "net1", "192.0.2.1/24")
	inPod.Route(t, "0.0.0.0/0", "192.0.2.2") // in the way of ours
	a := attachment(inPod, four)
	host.Do(func() {
		if err := pod.Attach(a); err == nil || !strings.Contains(err.Error(), "the pod has it already: add route 0.0.0.0/0") {
			t.Errorf("error %v", err)
		}
	})
	if _, err := inPod.Netlink().LinkByName("eth0"); err == nil {
		t.Error("the pod's end was left")
	}
	if _, err := host.Netlink().LinkByName(a.HostInterface); err == nil {
		t.Error("the host end was left")
	}
}

func TestCheckFinds(t *testing.T) {
	host, inPod := testnet.New(t), testnet.New(t)
	a := attachment(inPod, four, six)
	attach(t, host, a)
	raise(t, host, a.HostInterface)
	check := func(want string) {
		t.Helper()
		host.Do(func() {
			if err := pod.Check(a, defaults); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("check: %v, want %q", err, want)
			}
		})
	}
	run := func(ns *testnet.NS, command string) {
		t.Helper()
		words := strings.Fields(command)
		if out, err := ns.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	run(inPod, "ip link set eth0 mtu 1400")
	check("interface eth0 in the pod has MTU 1400, not 1450")
	run(inPod, "ip route del default")
	check("route 0.0.0.0/0 is missing")
	host.Do(func() {
		as := a
		as.MTU = 1400
		if err := pod.Check(as, defaults[:1]); err == nil {
			t.Error("a route that should be there is missing, and nothing is found")
		}
		if err := pod.Check(as, defaults[1:]); err != nil && strings.Contains(err.Error(), "route 0.0.0.0/0") {
			t.Errorf("a route that a later plugin took away is found missing: %v", err)
		}
	})
	run(inPod, "ip neigh del fe80::1 dev eth0")
	check("permanent neighbour fe80::1")
	run(inPod, "ip addr del 10.244.0.5/32 dev eth0")
	check("address 10.244.0.5 is missing")
	run(host, "ip link set "+a.HostInterface+" down")
	check("host interface " + a.HostInterface + " is down")
	detach(t, host, a.HostInterface)
	check("interface eth0 is missing in the pod")
	check("interface " + a.HostInterface + " is missing on the host")
}

func TestList(t *testing.T) {
	host, one, two := testnet.New(t), testnet.New(t), testnet.New(t)
	testnet.Pair(t, host, testnet.New(t), "eth0", "eth0") // not ours
	a := attachment(one, four, six)
	attach(t, host, a)
	b := attachment(two, netip.MustParsePrefix("10.244.0.6/32"))
	b.ContainerID = strings.Repeat("f", 64)
	b.HostInterface = pod.HostInterfaceName(b.ContainerID, "eth0")
	attach(t, host, b)
	raise(t, host, b.HostInterface)
	// As an attachment leaves it that crashed right after the pair was made.
	l, err := host.Netlink().LinkByName(b.HostInterface)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]pod.Attached
	list := func() {
		t.Helper()
		host.Do(func() {
			all, err := pod.List()
			if err != nil {
				t.Fatal(err)
			}
			got = map[string]pod.Attached{}
			for _, a := range all {
				got[a.HostInterface] = a
			}
		})
	}
	addrEqual := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	list()
	want := map[string]pod.Attached{
		a.HostInterface: {HostInterface: a.HostInterface, ContainerID: "c0ffee", PodInterface: "eth0", NetNS: a.NetNS, Addresses: []netip.Addr{four.Addr(), six.Addr()}},
		b.HostInterface: {HostInterface: b.HostInterface, ContainerID: b.ContainerID, PodInterface: "eth0", NetNS: b.NetNS, Addresses: []netip.Addr{b.Addresses[0].Addr()}, Up: true},
	}
	if diff := cmp.Diff(want, got, addrEqual); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, alias := range []string{"x", "someone's note", "a/b notanaddress"} {
		if err := host.Netlink().LinkSetAlias(l, alias); err != nil {
			t.Fatal(err)
		}
		list()
		if diff := cmp.Diff(pod.Attached{HostInterface: b.HostInterface, Up: true}, got[b.HostInterface], addrEqual); diff != "" {
			t.Errorf("alias %q: -want +got:\n%s", alias, diff)
		}
	}
}

func TestHostInterfaceName(t *testing.T) {
	seen := map[string]bool{}
	for i := range 1000 {
		for _, ifName := range []string{"eth0", "net1"} {
			name := pod.HostInterfaceName(fmt.Sprint("container", i), ifName)
			if len(name) > 15 || !strings.HasPrefix(name, plan.VethPrefix) || seen[name] {
				t.Fatalf("name %q", name)
			}
			seen[name] = true
		}
	}
	// Another name after an upgrade would orphan every pod's interface.
	if got, want := pod.HostInterfaceName("a", "b"), "tw-lgzhdlq3xsy5"; got != want {
		t.Errorf("the name was %s, now it is %s", want, got)
	}
}

func BenchmarkAttach(b *testing.B) {
	host, inPod := testnet.New(b), testnet.New(b)
	a := attachment(inPod, four, six)
	for b.Loop() {
		attach(b, host, a)
		b.StopTimer()
		detach(b, host, a.HostInterface)
		b.StartTimer()
	}
}

func BenchmarkDetach(b *testing.B) {
	host, inPod := testnet.New(b), testnet.New(b)
	a := attachment(inPod, four, six)
	for b.Loop() {
		b.StopTimer()
		attach(b, host, a)
		b.StartTimer()
		detach(b, host, a.HostInterface)
	}
}
