package route_test

import (
	"fmt"
	"testing"

	"github.com/twill-net/twill/plan"
)

// unplan takes the node's pod out of the plan.
func (n *node) unplan() {
	n.plan.Links.Delete(n.veth)
	n.plan.Sysctls.Delete("net/ipv4/conf/" + n.veth + "/proxy_arp")
	for key := range n.plan.Addresses.All() {
		if key.Link == n.veth {
			n.plan.Addresses.Delete(key)
		}
	}
	for prefix, r := range n.plan.Routes.All() {
		if r.Link == n.veth {
			n.plan.Routes.Delete(prefix)
		}
	}
	for key := range n.plan.Neighbours.All() {
		if key.Link == n.veth {
			n.plan.Neighbours.Delete(key)
		}
	}
}

// TestMendedCountsOthersOnly does what an agent does all day, of which the kernel
// tells as of the changes of other programs, and then is such a program.
func TestMendedCountsOthersOnly(t *testing.T) {
	a, b := twoNodes(t)
	mended := func(what string, want uint64) {
		t.Helper()
		if got := a.kernel.Mended(); got != want {
			t.Errorf("%s: %d mended, want %d; log:\n%s", what, got, want, a.log)
		}
	}
	a.apply()
	mended("the first plan", 0)
	for range 3 {
		// The device goes first; until the plan follows, what is on it is missing.
		a.run("ip link del " + a.veth)
		if _, err := a.try(); err == nil {
			t.Error("the pod's device is gone, and nothing failed")
		}
		a.unplan()
		a.apply()
		mended("a pod was removed", 0)
		a.attach()
		a.apply()
		mended("a pod was attached", 0)
	}
	a.planTunnel(false)
	a.viaTunnel(b, false)
	a.apply()
	link, _ := a.plan.Links.Get(plan.VXLANLink)
	link.VNI++ // with the old device the kernel removes what is on it
	a.plan.Links.Set(plan.VXLANLink, link)
	a.apply()
	a.direct(b)
	a.apply()
	a.viaTunnel(b, false)
	link.MAC[5]++ // with its MAC a device loses its neighbours
	a.plan.Links.Set(plan.VXLANLink, link)
	a.apply()
	a.settled()
	mended("tunnels and routes changed", 0)

	for i, change := range []string{
		"ip route del " + b.block(false).String(),
		"ip neigh del " + a.podAddr(false).String() + " dev " + a.veth,
		"ip route add 10.99.0.0/24 dev " + a.veth + " proto " + fmt.Sprint(plan.RouteProtocol),
		"ip link set " + plan.VXLANLink + " mtu 1300",
		"ip addr del fe80::1/64 dev " + a.veth,
	} {
		before := a.kernel.Mended()
		a.run(change)
		a.apply()
		if got := a.kernel.Mended(); got == before {
			t.Errorf("change %d, %q, is not counted; log:\n%s", i, change, a.log)
		}
	}
	before := a.kernel.Mended()
	a.ns.Sysctl(t, "ipv4/conf/"+a.veth+"/proxy_arp", "0")
	a.ns.Do(func() { a.kernel.CheckSysctls(a.plan) })
	a.apply()
	mended("a sysctl was changed", before+1)
	a.settled()
	mended("nothing was changed", before+1)
}
