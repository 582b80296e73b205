package plan

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
)

// TestUnitsShareAKey: the first by name has it, however they come and go.
func TestUnitsShareAKey(t *testing.T) {
	table := NewTable[string](same[int])
	u := newUnits(table)
	want := func(value int, there bool) {
		t.Helper()
		if got, ok := table.Get("k"); ok != there || got != value {
			t.Errorf("%d, %v; want %d, %v", got, ok, value, there)
		}
	}
	u.replace("b", map[string]int{"k": 2})
	want(2, true)
	u.replace("a", map[string]int{"k": 1})
	want(1, true)
	u.replace("b", map[string]int{"k": 3})
	want(1, true)
	u.replace("a", nil)
	want(3, true)
	u.replace("b", nil)
	want(0, false)
}

// TestAPodThatGetsItsName: an interface that was found after a crash belongs to
// nobody until the store says whose it is. Then nothing of the stranger is left.
func TestAPodThatGetsItsName(t *testing.T) {
	local := Local{HostInterface: "tw-a", ContainerID: "c", Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.1")}}
	pl := newScenePlanner()
	pl.SetLocal(local)
	pl.Flush()
	local.Pod = api.Key{Namespace: "a", Name: "p"}
	pl.SetLocal(local)
	pl.Flush()
	pl.DeleteLocal("tw-a")
	if got, want := pl.Flush().String(), newScenePlanner().Flush().String(); got != want {
		t.Errorf("something is left of the pod:\n%s", got)
	}
}

// TestTheNodeItselfGoes: without its object a node has no address on which node
// ports could be served.
func TestTheNodeItselfGoes(t *testing.T) {
	pl := newScenePlanner()
	for _, e := range scene(t) {
		e.tell(pl)
	}
	pl.Delete(api.NodeKind, api.Key{Name: "master"})
	pl.Flush()
	if n := len(pl.services.local.Addrs); n != 0 {
		t.Errorf("node ports are served on %d addresses", n)
	}
}

// TestALocalPodWinsItsAddress over a block of another node that is no more than
// it.
func TestALocalPodWinsItsAddress(t *testing.T) {
	addr := netip.MustParseAddr("10.244.0.1")
	block, node := blockOf("b", "10.244.0.1/32", "node01"), nodeOf("node01", "172.16.10.11", `{"host-gw":{}}`)
	for _, podFirst := range []bool{true, false} {
		pl := newScenePlanner()
		if podFirst {
			pl.SetLocal(Local{HostInterface: "tw-a", Addrs: []netip.Addr{addr}})
			pl.Flush()
		}
		pl.Put(node)
		pl.Put(block)
		pl.Flush()
		pl.SetLocal(Local{HostInterface: "tw-a", Addrs: []netip.Addr{addr}})
		p := pl.Flush()
		if r, _ := p.Routes.Get(netip.PrefixFrom(addr, 32)); r.Link != "tw-a" {
			t.Errorf("the pod's address is routed to %+v", r)
		}
		pl.DeleteLocal("tw-a")
		if r, _ := pl.Flush().Routes.Get(netip.PrefixFrom(addr, 32)); r.Link != "eth0" {
			t.Errorf("without the pod its address is routed to %+v", r)
		}
	}
}

// TestAPoolWithinAnother: however they come, the smallest says how its blocks are
// reached, and the one that stays does when the other goes.
func TestAPoolWithinAnother(t *testing.T) {
	pool := func(name, cidr string, mode api.EncapsulationMode) *api.IPPool {
		p := api.IPPoolKind.New().(*api.IPPool)
		p.Name, p.Spec.CIDR, p.Spec.VXLANMode = name, cidr, mode
		return p
	}
	outer, inner := pool("outer", "10.0.0.0/16", api.EncapAlways), pool("inner", "10.0.1.0/24", api.EncapNever)
	planOf := func(pools ...api.Object) (*Planner, string) {
		pl := newScenePlanner()
		pl.Put(nodeOf("node01", "172.16.10.11", `{"host-gw":{},"vxlan":{"vni":1,"port":8472,"mac":"02:00:00:00:00:01"}}`))
		pl.Put(blockOf("b", "10.0.1.0/26", "node01"))
		for _, p := range pools {
			pl.Put(p)
			pl.Flush()
		}
		return pl, pl.Flush().String()
	}
	_, both := planOf(outer, inner)
	if _, other := planOf(inner, outer); other != both {
		t.Errorf("outer first:\n%s\ninner first:\n%s", both, other)
	}
	_, outerOnly := planOf(outer)
	_, innerOnly := planOf(inner)
	if outerOnly == both || outerOnly == innerOnly {
		t.Errorf("the pool within makes no difference:\n%s", both)
	}
	for gone, want := range map[string]string{"outer": innerOnly, "inner": outerOnly} {
		pl, _ := planOf(outer, inner)
		pl.Delete(api.IPPoolKind, api.Key{Name: gone})
		if got := pl.Flush().String(); got != want {
			t.Errorf("without %s:\n%s\nwant\n%s", gone, got, want)
		}
	}
}

func nodeOf(name, address, receives string) *corev1.Node {
	node := api.NodeKind.New().(*corev1.Node)
	node.Name, node.Annotations = name, map[string]string{api.ReceivesAnnotation: receives}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	return node
}

func blockOf(name, cidr, node string) *api.IPAMBlock {
	block := api.IPAMBlockKind.New().(*api.IPAMBlock)
	block.Name, block.Spec.CIDR, block.Spec.Affinity = name, cidr, api.AffinityOf(node)
	return block
}
