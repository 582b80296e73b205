package route_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/plan"
)

// large is a plan of many peers with many routes each.
func large(n *node, peers, prefixes int) {
	n.planTunnel(false)
	for i := range peers {
		next := netip.AddrFrom4([4]byte{10, 128 + byte(i>>8), byte(i), 0})
		mac := plan.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}
		n.plan.Neighbours.Set(plan.NeighbourKey{Link: plan.VXLANLink, IP: next}, mac)
		n.plan.FDB.Set(plan.FDBKey{Link: plan.VXLANLink, MAC: mac}, netip.AddrFrom4([4]byte{172, 16, 20 + byte(i>>8), byte(i)}))
		for j := range prefixes {
			block := netip.AddrFrom4([4]byte{10, 128 + byte(i>>8), byte(i), byte(j) * 8})
			n.plan.Routes.Set(netip.PrefixFrom(block, 29), plan.Route{Link: plan.VXLANLink, Gateway: next, OnLink: true, Source: n.underlay(false)})
		}
	}
}

func TestManyPeers(t *testing.T) {
	a, _ := twoNodes(t)
	large(a, 1000, 20)
	a.watch()
	if w := a.apply(); w < 22000 {
		t.Errorf("%d writes", w)
	}
	a.settled()
	if a.logs("drift") || a.logs("lost") {
		t.Errorf("writes of ours were taken for drift: %s", a.log)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(a.log)
		}
	})
	a.run("ip route flush proto 84") // somebody's slip
	eventually(t, "all routes", func() bool { return strings.Count(a.run("ip route show proto 84"), "\n") >= 20000 })
}

func BenchmarkApplyAllOf1000Peers(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		n, _ := twoNodes(b)
		large(n, 1000, 20)
		b.StartTimer()
		n.apply()
	}
}

func BenchmarkCompare1000Peers(b *testing.B) {
	n, _ := twoNodes(b)
	large(n, 1000, 20)
	n.apply()
	for b.Loop() {
		n.kernel.Resync()
		if w := n.apply(); w != 0 {
			b.Fatal(w)
		}
	}
}

func BenchmarkOneRouteOf20000(b *testing.B) {
	n, _ := twoNodes(b)
	large(n, 1000, 20)
	n.apply()
	p := netip.MustParsePrefix("10.200.0.0/24")
	for b.Loop() {
		n.plan.Routes.Set(p, plan.Route{Blackhole: true})
		n.apply()
		n.plan.Routes.Delete(p)
		n.apply()
	}
}
