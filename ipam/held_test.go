package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store/memory"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// TestHeldAddressesStay: addresses that only the store or the kernel knows are not
// given out, asked for or not, until their holders are gone.
func TestHeldAddressesStay(t *testing.T) {
	old, host := Holder{Pod: api.Key{Namespace: "default", Name: "old"}}, Holder{Host: "interface cni0"}
	var a *Allocator
	survey := func(context.Context, netip.Prefix) error {
		a.Hold(old, addrs("10.244.0.1", "192.0.2.1"))
		a.Hold(host, addrs("10.244.0.2"))
		return nil
	}
	a = newSurveyed(t, survey, ipPool("p", "10.244.0.0/29", 29))
	for _, c := range []struct{ addr, want string }{
		{"10.244.0.1", "the address can't be given: 10.244.0.1 is in use by pod default/old"},
		{"10.244.0.2", "the address can't be given: 10.244.0.2 is in use by interface cni0"},
	} {
		if _, err := a.Allocate(t.Context(), request("asks", c.addr)); err == nil || err.Error() != c.want || !errors.Is(err, ErrAddress) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	for _, want := range []string{"10.244.0.3", "10.244.0.4", "10.244.0.5", "10.244.0.6"} {
		if got := mustAllocate(t, a, request("pod"+want)); got[0].String() != want {
			t.Errorf("got %s, want %s", got[0], want)
		}
	}
	if _, err := a.Allocate(t.Context(), request("one more")); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v", err)
	}
	if b := a.Blocks(); b[0].Free != 0 || b[0].Used != 4 {
		t.Errorf("%+v", b)
	}
	a.Hold(old, nil)
	if got := mustAllocate(t, a, request("next")); got[0].String() != "10.244.0.1" {
		t.Errorf("got %s, want what was freed", got[0])
	}
	a.Hold(host, nil)
	mustAllocate(t, a, request("last", "10.244.0.2"))
}

// TestPodIsKnownByItsAddress: the pod that the store knows by an address gets it,
// and an address that the journal has released is free, although the store still lists
// its pod.
func TestPodIsKnownByItsAddress(t *testing.T) {
	a := newSurveyed(t, nil, ipPool("p", "10.244.0.0/29", 29))
	mustAllocate(t, a, request("first"))
	web := Holder{Pod: api.Key{Namespace: "default", Name: "web"}}
	a.Hold(web, addrs("10.244.0.5"))
	if got := mustAllocate(t, a, request("web")); got[0].String() != "10.244.0.5" {
		t.Errorf("got %s, want what the store says", got[0])
	}
	a.Hold(web, addrs("10.244.0.5"))
	mustRelease(t, a, "web")
	a.Hold(web, addrs("10.244.0.5"))
	if b := a.Blocks(); b[0].Free != 5 {
		t.Errorf("%+v", b)
	}
	mustAllocate(t, a, request("next", "10.244.0.5"))
	if a.Journaled(addrs("10.244.0.6")[0]) || !a.Journaled(addrs("10.244.0.5")[0]) {
		t.Error("what the journal knows is wrong")
	}
	// What the host has is not the journal's to free.
	a.Hold(Holder{Host: "interface br0"}, addrs("10.244.0.5"))
	mustRelease(t, a, "next")
	for range 4 {
		if got := mustAllocate(t, a, request(fmt.Sprint("more", a.number, len(a.users)))); got[0].String() == "10.244.0.5" {
			t.Error("the host's address was given out")
		}
	}
	if _, err := a.Allocate(t.Context(), request("one more")); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v", err)
	}
}

// TestAllocateWaitsForTheStoreToHear: a node may get a block before the store hears
// that the block's last pod on another node is gone.
func TestAllocateWaitsForTheStoreToHear(t *testing.T) {
	inNodes(t, 1, []*api.IPPool{ipPool("p", "10.0.0.0/29", 29)}, func(t *testing.T, n *nodes) {
		a := n.all["node00"]
		if got := n.fill("node00", 1); got != 1 {
			t.Fatal("the pool is empty, and no address can be had")
		}
		gone := Holder{Pod: api.Key{Namespace: "default", Name: "gone"}}
		a.Hold(gone, addrs("10.0.0.6"))
		if got := n.fillMore("node00", "more", 4); got != 4 {
			t.Fatalf("%d addresses, want 4", got)
		}
		began := time.Now()
		time.AfterFunc(claimTimeout/2, func() { a.Hold(gone, nil) })
		if got := mustAllocate(t, a.Allocator, request("last")); got[0].String() != "10.0.0.6" {
			t.Errorf("got %s", got[0])
		}
		if took := time.Since(began); took != claimTimeout/2 {
			t.Errorf("it took %s", took)
		}
	})
}

// TestBlockWaitsForSurvey: nothing is given out from a block before the survey has
// found which of its addresses are in use.
func TestBlockWaitsForSurvey(t *testing.T) {
	broken := errors.New("broken")
	a := newSurveyed(t, func(context.Context, netip.Prefix) error { return broken }, ipPool("p", "10.244.0.0/29", 29))
	if _, err := a.Allocate(t.Context(), request("a")); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	if _, err := a.ConfirmBlocks(t.Context()); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	broken = nil
	if got := mustAllocate(t, a, request("a")); len(got) != 1 || len(a.Blocks()) != 1 {
		t.Errorf("got %v of %v", got, a.Blocks())
	}
}

func newSurveyed(t *testing.T, survey func(context.Context, netip.Prefix) error, pools ...*api.IPPool) *Allocator {
	t.Helper()
	a := newAllocator(t, "node01", memory.New(), pools...)
	a.survey = survey
	return a
}

// survey tells a node what the store says of a block.
func (w *world) survey(n *worldNode) func(context.Context, netip.Prefix) error {
	return func(context.Context, netip.Prefix) error {
		w.tellAll(n)
		return nil
	}
}

func (w *world) tellAll(n *worldNode) {
	for key, addrs := range w.stored {
		n.allocator.Hold(Holder{Pod: key}, addrs)
	}
}

// tell has the store say what a pod has, and all agents hear it.
func (w *world) tell(key api.Key, addrs []netip.Addr) {
	if w.stored[key] = addrs; len(addrs) == 0 {
		delete(w.stored, key)
	}
	for _, n := range w.nodes {
		if !n.down {
			n.allocator.Hold(Holder{Pod: key}, addrs)
		}
	}
}

// reinstall takes everything of ours off a node and out of the store, and brings
// it back. The node's pods run on without an interface.
func (w *world) reinstall(n *worldNode) {
	w.counts["reinstalled"]++
	n.left = -1
	w.store.SetDown(false)
	for block, owner := range blocksInStore(w.t, w.store) {
		if owner == "host:"+n.name || owner == n.name {
			w.must(w.store.Delete(w.t.Context(), api.IPAMBlockKind, api.Key{Name: BlockName(netip.MustParsePrefix(block))}, ""))
		}
	}
	w.must(n.allocator.Close())
	w.must(os.Remove(n.path))
	for _, id := range n.order {
		w.cutOff = append(w.cutOff, api.Key{Namespace: "default", Name: id.ContainerID})
	}
	n.order = nil
	clear(n.pods)
	w.open(n)
}

// cutOffEnds ends a pod without an interface, or starts it anew on the node.
func (w *world) cutOffEnds(n *worldNode) {
	if len(w.cutOff) == 0 {
		return
	}
	i := w.random.IntN(len(w.cutOff))
	key := w.cutOff[i]
	w.cutOff = slices.Delete(w.cutOff, i, i+1)
	for _, addr := range w.stored[key] {
		delete(w.owner, addr)
	}
	if n == nil || w.random.IntN(2) == 0 {
		w.tell(key, nil)
		return
	}
	req := request(key.Name)
	if al, ok := w.allocate(n, req); ok {
		w.counts["restarted"]++
		w.attached(n, req.ID, al)
	}
}

// storeHears has the store forget pods that are gone.
func (w *world) storeHears() {
	alive := map[api.Key]bool{}
	for _, key := range w.cutOff {
		alive[key] = true
	}
	for _, n := range w.nodes {
		for id := range n.pods {
			alive[api.Key{Namespace: "default", Name: id.ContainerID}] = true
		}
	}
	for _, key := range slices.Collect(maps.Keys(w.stored)) {
		if !alive[key] {
			w.tell(key, nil)
		}
	}
}
