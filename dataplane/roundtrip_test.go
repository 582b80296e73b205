// Package dataplane has no code: it is where the kernel as a whole is held against
// plans, nftables and devices and routes together.
package dataplane

import (
	"cmp"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/plan/plantest"
)

var (
	seed  = flag.Uint64("seed", 0, "begin the property test with this seed instead of a random one")
	cases = flag.Int("cases", 300, "how many random changes the property test tries")
)

// changesInAWorld is after how many changes all is taken back, and another world
// begins in another namespace.
const changesInAWorld = 500

// TestPlanIsWhatTheKernelHas changes random clusters and lets a node follow, in
// the real kernel. A case is one change, or two in one go: it is planned, what
// differs is written, and another pair of Kernels, which know nothing, read all
// of it back. They find what is planned, no more and no less: they have nothing
// to write. The time goes into waiting for the kernel, so worlds run side by side
// (-parallel).
func TestPlanIsWhatTheKernelHas(t *testing.T) {
	first := cmp.Or(*seed, rand.Uint64())
	var done, wrote atomic.Int64
	t.Run("worlds", func(t *testing.T) {
		for world := range (*cases + changesInAWorld - 1) / changesInAWorld {
			seed, changes := first+uint64(world), min(changesInAWorld, *cases-world*changesInAWorld)
			t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
				t.Parallel()
				n := newNode(t, seed)
				for change := range changes {
					var told []plantest.Event
					for range 1 + n.world.IntN(2) {
						e := n.world.Change()
						told = append(told, e)
						e.Tell(n.planner)
					}
					wrote.Add(int64(n.follow(fmt.Sprintf("-seed %d, change %d (%v)", seed, change, told))))
					done.Add(1)
				}
				for _, e := range n.world.Undo() {
					e.Tell(n.planner)
				}
				n.follow(fmt.Sprintf("-seed %d, all is taken back", seed))
			})
		}
	})
	t.Logf("%d changes, %d writes, -seed %d", done.Load(), wrote.Load(), first)
}

// node is the world's node in a namespace.
type node struct {
	t       *testing.T
	ns      *testnet.NS
	world   *plantest.World
	planner *plan.Planner
	kernel  kernel
}

// kernel is all that makes a plan true, but for connection tracking.
type kernel struct {
	nft   *nft.Kernel
	route *route.Kernel
}

func newNode(t *testing.T, seed uint64) *node {
	n := &node{
		t: t, ns: testnet.New(t), planner: plantest.Planner(),
		world: plantest.New(seed, plantest.Settings{Fabric: true, Underlay: true, Sense: true}),
	}
	others := testnet.New(t)
	testnet.Pair(t, n.ns, others, plantest.Underlay.Link, "eth0")
	link, err := n.ns.Netlink().LinkByName(plantest.Underlay.Link)
	if err == nil {
		err = n.ns.Netlink().LinkSetMTU(link, 9000) // the most that a world asks for
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plantest.Underlay.Prefixes {
		n.ns.Address(t, plantest.Underlay.Link, p.String())
	}
	// The devices of pods are always there: attaching pods is not what is tested.
	for _, name := range n.world.HostInterfaces {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, 9000
		if err := n.ns.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(others.FD())}); err != nil {
			t.Fatal(err)
		}
	}
	n.kernel = n.open()
	t.Cleanup(n.kernel.close)
	return n
}

func (n *node) open() (k kernel) {
	n.t.Helper()
	n.ns.Do(func() {
		var err error
		if k.nft, err = nft.Open(slog.New(slog.DiscardHandler)); err != nil {
			n.t.Fatal(err)
		}
		if k.route, err = route.Open(nil); err != nil {
			n.t.Fatal(err)
		}
	})
	return k
}

func (k kernel) close() {
	k.nft.Close()
	k.route.Close()
}

// follow makes the plan true and has it read back.
func (n *node) follow(what string) (writes int) {
	n.t.Helper()
	p := n.planner.Flush()
	writes = n.apply(n.kernel, p, what)
	reader := n.open()
	defer reader.close()
	if again := n.apply(reader, p, what+", read back"); again != 0 {
		n.t.Fatalf("%s: who reads it finds %d differences from the plan:\n%s", what, again, p)
	}
	return writes
}

func (n *node) apply(k kernel, p *plan.Plan, what string) (writes int) {
	n.t.Helper()
	n.ns.Do(func() {
		rules, err := k.nft.Apply(p)
		if err != nil {
			n.t.Fatalf("%s: %v\n%s", what, err, p)
		}
		rest, err := k.route.Apply(p)
		if err != nil {
			n.t.Fatalf("%s: %v\n%s", what, err, p)
		}
		writes = rules + rest
	})
	dirty := p.Sysctls.DirtyLen() + p.Links.DirtyLen() + p.Addresses.DirtyLen() + p.Neighbours.DirtyLen() + p.FDB.DirtyLen() +
		p.Routes.DirtyLen() + p.Chains.DirtyLen() + p.Sets.DirtyLen() + p.Elements.DirtyLen()
	if dirty != 0 {
		n.t.Fatalf("%s: %d keys stay dirty", what, dirty)
	}
	return writes
}
