package route_test

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/plan"
)

// Each thing of ours that somebody changes is mended, and then all is quiet.
func TestDriftIsMended(t *testing.T) {
	const tunnel = plan.VXLANLink
	for name, hurt := range map[string]func(a, b *node) string{
		"tunnel deleted": func(a, b *node) string { return "ip link del " + tunnel },
		"tunnel down":    func(a, b *node) string { return "ip link set " + tunnel + " down" },
		"tunnel down and up": func(a, b *node) string {
			a.run("ip link set " + tunnel + " down")
			return "ip link set " + tunnel + " up"
		},
		"tunnel MTU": func(a, b *node) string { return "ip link set " + tunnel + " mtu 1300" },
		"tunnel MAC": func(a, b *node) string { return "ip link set " + tunnel + " address 02:00:00:00:00:99" },
		"tunnel made by hand": func(a, b *node) string {
			a.run("ip link del " + tunnel)
			a.run("ip link add " + tunnel + " type vxlan id 77 dstport 4789 dev eth0")
			return "true"
		},
		"pod's link down": func(a, b *node) string { return "ip link set " + a.veth + " down" },
		"pod's link down, up": func(a, b *node) string {
			a.run("ip link set " + a.veth + " down")
			return "ip link set " + a.veth + " up"
		},
		"pod's link MTU":       func(a, b *node) string { return "ip link set " + a.veth + " mtu 1000" },
		"underlay down and up": func(a, b *node) string { a.run("ip link set eth0 down"); return "ip link set eth0 up" },
		"underlay address": func(a, b *node) string {
			a.run("ip addr del 172.16.10.1/24 dev eth0")
			return "ip addr add 172.16.10.1/24 dev eth0"
		},
		"route deleted":      func(a, b *node) string { return "ip route del " + b.block(false).String() },
		"IPv6 route deleted": func(a, b *node) string { return "ip -6 route del " + b.block(true).String() },
		"all routes flushed": func(a, b *node) string { return "ip route flush proto 84" },
		"all IPv6 flushed":   func(a, b *node) string { return "ip -6 route flush proto 84" },
		"route changed": func(a, b *node) string {
			return "ip route replace " + b.block(false).String() + " via 172.16.10.77 dev eth0 proto 84"
		},
		"IPv6 route changed": func(a, b *node) string {
			return "ip -6 route replace " + b.block(true).String() + " via fd00:a::77 dev eth0 proto 84"
		},
		"route added as ours": func(a, b *node) string { return "ip route add 192.0.2.0/24 via 172.16.10.77 dev eth0 proto 84" },
		"blackhole deleted":   func(a, b *node) string { return "ip route del blackhole " + a.block(false).String() },
		"pod's route deleted": func(a, b *node) string { return "ip route del " + a.podAddr(false).String() },
		"neighbour deleted":   func(a, b *node) string { return "ip neigh del " + b.block(false).Addr().String() + " dev " + tunnel },
		"neighbour changed": func(a, b *node) string {
			return "ip neigh replace " + b.block(true).Addr().String() + " dev " + tunnel + " lladdr 02:00:00:00:00:99"
		},
		"neighbours flushed": func(a, b *node) string { a.run("ip neigh flush dev " + tunnel + " nud permanent"); return "true" },
		"neighbour not ours": func(a, b *node) string {
			return "ip neigh add 192.0.2.1 dev " + tunnel + " lladdr 02:00:00:00:00:99 nud permanent"
		},
		"forwarding deleted": func(a, b *node) string { return "bridge fdb del " + b.mac().String() + " dev " + tunnel },
		"forwarding changed": func(a, b *node) string {
			return "bridge fdb replace " + b.mac().String() + " dev " + tunnel + " dst 172.16.10.77 self"
		},
		"forwarding not ours": func(a, b *node) string {
			return "bridge fdb add 02:00:00:00:00:99 dev " + tunnel + " dst 172.16.10.77 self"
		},
		"address deleted":      func(a, b *node) string { return "ip addr del " + a.block(false).Addr().String() + "/32 dev " + tunnel },
		"address not ours":     func(a, b *node) string { return "ip addr add 192.0.2.1/24 dev " + tunnel },
		"tunnel's setting":     func(a, b *node) string { return "sysctl -qw net.ipv4.conf." + tunnel + ".rp_filter=1" },
		"pod's setting":        func(a, b *node) string { return "sysctl -qw net.ipv4.conf." + a.veth + ".proxy_arp=0" },
		"no IPv4 forwarding":   func(a, b *node) string { return "sysctl -qw net.ipv4.ip_forward=0" },
		"no IPv6 forwarding":   func(a, b *node) string { return "sysctl -qw net.ipv6.conf.all.forwarding=0" },
		"gateway address gone": func(a, b *node) string { return "ip addr del fe80::1/64 dev " + a.veth },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := twoNodes(t)
			for _, n := range [][2]*node{{a, b}, {b, a}} {
				n[0].planTunnel(false)
				n[0].viaTunnel(n[1], false)
				n[0].apply()
			}
			if name == "underlay down and up" {
				// What this takes away of the node's own is the node's to give back.
				a.run("sysctl -qw net.ipv6.conf.eth0.keep_addr_on_down=1")
			}
			a.settled()
			before := a.state()
			last := hurt(a, b) // what comes before the last command is done unwatched
			a.watch()
			a.run(last)
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("before and after:\n%s\n%s\n%s", before, a.state(), a.log)
				}
			})
			eventually(t, "the state before", func() bool { return a.state() == before })
			a.settled()
			b.serve()
			reaches(t, a.pod, b)
		})
	}
}

// state is all that is ours, as text. Parts that differ from run to run, such as
// the indexes of devices, are left out.
func (n *node) state() string {
	var b strings.Builder
	for _, command := range []string{
		"ip -o route show proto 84", "ip -6 -o route show proto 84", "ip neigh show nud permanent", "bridge fdb show dev " + plan.VXLANLink,
		"ip -o addr show dev " + plan.VXLANLink + " scope global", "ip -6 -o addr show to fe80::1/128 dev " + n.veth, "ip -o -d link show type vxlan", "ip -o link show dev " + n.veth,
		"cat /proc/sys/net/ipv4/conf/" + plan.VXLANLink + "/rp_filter", "cat /proc/sys/net/ipv4/conf/" + n.veth + "/proxy_arp",
		"cat /proc/sys/net/ipv4/ip_forward", "cat /proc/sys/net/ipv6/conf/all/forwarding",
	} {
		words := strings.Fields(command)
		out, _ := n.ns.Command(words[0], words[1:]...).CombinedOutput() // a device may be gone for a moment
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		for i, line := range lines {
			if number, rest, ok := strings.Cut(line, ": "); ok && !strings.Contains(number, " ") { // the index
				line = rest
			}
			lines[i] = strings.TrimSpace(line)
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, "\n") + "\n")
	}
	return b.String()
}

// Writes of ours, however many, are not taken for drift.
func TestOwnWritesAreNoDrift(t *testing.T) {
	a, b := twoNodes(t)
	calls := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	watched := make(chan error)
	a.planTunnel(false)
	a.apply()
	go func() { watched <- a.kernel.Watch(ctx, func() { calls <- struct{}{} }, func() {}) }()
	for range 3 {
		a.viaTunnel(b, false)
		a.apply()
		a.direct(b)
		a.apply()
	}
	a.plan.Links.Delete(plan.VXLANLink)
	a.plan.Addresses.Delete(plan.AddressKey{Link: plan.VXLANLink, Prefix: netip.PrefixFrom(a.block(false).Addr(), 32)})
	a.plan.Sysctls.Delete("net/ipv4/conf/" + plan.VXLANLink + "/rp_filter")
	a.apply()
	a.settled()
	if a.logs("drift") {
		t.Errorf("log: %s", a.log)
	}
	// The first drift that is seen is a real one.
	if len(calls) != 0 {
		t.Errorf("%d calls of drift after writes of ours alone", len(calls))
	}
	a.run("ip route del " + b.block(false).String())
	<-calls
	if w := a.apply(); w != 1 {
		t.Errorf("mending one route wrote %d times", w)
	}
	cancel()
	if err := <-watched; err != nil {
		t.Error(err)
	}
}

// Pods come and go without a false alarm.
func TestPodsAreNoDrift(t *testing.T) {
	a, _ := twoNodes(t)
	a.apply()
	a.watch()
	name := a.veth
	a.mu.Lock()
	for prefix := range a.plan.Routes.All() {
		a.plan.Routes.Delete(prefix)
	}
	for key := range a.plan.Neighbours.All() {
		a.plan.Neighbours.Delete(key)
	}
	for key := range a.plan.Addresses.All() {
		a.plan.Addresses.Delete(key)
	}
	a.plan.Sysctls.Delete("net/ipv4/conf/" + name + "/proxy_arp")
	a.plan.Links.Delete(name)
	a.mu.Unlock()
	a.apply()
	a.run("ip link del " + name)
	a.apply() // takes the news
	a.mu.Lock()
	a.attach()
	a.mu.Unlock()
	if w := a.apply(); w == 0 {
		t.Error("nothing was written for the new pod")
	}
	a.settled()
	if a.logs("drift") {
		t.Errorf("log: %s", a.log)
	}
}

func TestSysctlsAreChecked(t *testing.T) {
	a, _ := twoNodes(t)
	a.apply()
	check := func() (n int) {
		a.ns.Do(func() { n = a.kernel.CheckSysctls(a.plan) })
		return n
	}
	if n := check(); n != 0 {
		t.Errorf("%d differ", n)
	}
	a.ns.Sysctl(t, "ipv4/conf/"+a.veth+"/proxy_arp", "0")
	if n := check(); n != 1 {
		t.Errorf("%d differ, want 1", n)
	}
	if w := a.apply(); w != 1 {
		t.Errorf("%d writes, want 1", w)
	}
	a.ns.Do(func() {
		if got, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + a.veth + "/proxy_arp"); err != nil || string(got) != "1\n" {
			t.Errorf("%q, %v", got, err)
		}
	})
}
