package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/twill-net/twill/api"
)

// TestNodesShareAPool has random pods come and go on nodes that share a pool that
// is too small, while agents are started anew. An attachment may find no address
// only if no node has an empty block. In the end one node can have all addresses,
// and when the pool is gone, no block is left.
func TestNodesShareAPool(t *testing.T) {
	first := cmp.Or(*seed, rand.Uint64())
	attached, refused := 0, 0
	for number := range uint64(20) {
		t.Run(fmt.Sprint("seed", first+number), func(t *testing.T) {
			pools := []*api.IPPool{ipPool("p", "10.0.0.0/26", 29)}
			inNodes(t, 5, pools, func(_ *testing.T, n *nodes) {
				more, none := n.share(rand.New(rand.NewPCG(first+number, 0)), pools)
				attached, refused = attached+more, refused+none
			})
		})
		if t.Failed() {
			t.Fatalf("repeat it with -seed %d", first+number)
		}
	}
	t.Logf("%d pods attached, %d refused", attached, refused)
	if attached < 1000 || refused < 100 {
		t.Error("that shows too little")
	}
}

func (n *nodes) share(random *rand.Rand, pools []*api.IPPool) (attached, refused int) {
	t := n.t
	owner := map[netip.Addr]string{}
	pods := map[string][]Interface{} // by node
	for step := range 400 {
		name := fmt.Sprintf("node%02d", random.IntN(5))
		k := n.all[name]
		attaching := 35
		if step/50%2 == 0 {
			attaching = 75
		}
		switch dice := random.IntN(100); {
		case dice < attaching:
			r := request(fmt.Sprint(step))
			al, err := k.Allocate(t.Context(), r)
			if errors.Is(err, ErrExhausted) {
				n.nothingWasEmpty(name)
				refused++
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			attached++
			if other := owner[al.Addresses[0]]; other != "" {
				t.Fatalf("%s was given to %s and is of %s", al.Addresses[0], r.ID, other)
			}
			owner[al.Addresses[0]] = r.String()
			pods[name] = append(pods[name], Interface{ID: r.ID, HostInterface: r.HostInterface, Addresses: al.Addresses})
		case dice < 92 && len(pods[name]) > 0:
			i := random.IntN(len(pods[name]))
			pod := pods[name][i]
			delete(owner, pod.Addresses[0])
			mustRelease(t, k.Allocator, pod.ContainerID)
			pods[name] = slices.Delete(pods[name], i, i+1)
		case dice < 94:
			k.stop()
			n.start(name, pods[name], pools...)
		case dice < 97:
			n.passes(time.Duration(random.IntN(30)) * time.Second)
		}
	}
	n.empty()
	got := n.fill("node03", 100)
	// A node that was refused an address before may claim what another gives back, and
	// gives it back in turn: a runtime that tries again gets it.
	n.passes(releaseGrace)
	if got += n.fillMore("node03", "again", 100); got != 62 {
		t.Errorf("when all pods are gone one node gets %d addresses, want 62", got)
	}
	n.setPools()
	n.empty()
	n.passes(2 * releaseGrace)
	n.expectBlocks("in the end", nil)
	if left := blocksInStore(t, n.store); len(left) > 0 {
		t.Errorf("blocks %v are left", left)
	}
	return attached, refused
}

// nothingWasEmpty is called when a node was refused an address: no node has a
// block without pods.
func (n *nodes) nothingWasEmpty(refused string) {
	n.t.Helper()
	for name, k := range n.all {
		for _, b := range k.Blocks() {
			if b.Used == 0 {
				n.t.Errorf("%s was refused an address while block %s of %s is empty", refused, b.Prefix, name)
			}
		}
	}
}
