package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

// lossyStore sometimes makes a change and then says that it is unreachable, as
// a network does.
type lossyStore struct {
	*memory.Store
	random *rand.Rand
}

func (s lossyStore) lose() error {
	if s.random.IntN(20) == 0 {
		return fmt.Errorf("%w: the answer was lost", store.ErrUnavailable)
	}
	return nil
}

func (s lossyStore) Create(ctx context.Context, obj api.Object) (api.Object, error) {
	made, err := s.Store.Create(ctx, obj)
	return made, errors.Join(err, s.lose())
}

func (s lossyStore) Delete(ctx context.Context, kind *api.Kind, key api.Key, version string) error {
	return errors.Join(s.Store.Delete(ctx, kind, key, version), s.lose())
}

// world is several nodes, and the truth about who has which address: the
// kernels' view, which no allocator sees.
type world struct {
	t      *testing.T
	random *rand.Rand
	store  lossyStore
	pools  []*api.IPPool
	nodes  []*worldNode
	owner  map[netip.Addr]string
	serial int
	steps  int
	counts map[string]int
}

type worldNode struct {
	name, path string
	boot       int
	allocator  *Allocator
	pods       map[ID]Interface
	order      []ID
}

func newWorld(t *testing.T, seed uint64, nodes int) *world {
	random := rand.New(rand.NewPCG(seed, seed))
	w := &world{
		t: t, random: random, store: lossyStore{memory.New(), random},
		// 254 addresses in 32 blocks, and 31 in 4: small, so that both run out.
		pools:  []*api.IPPool{ipPool("v4", "10.0.0.0/24", 29), ipPool("w4", "10.9.0.0/27", 29), ipPool("v6", "fd00::/119", 123)},
		owner:  map[netip.Addr]string{},
		counts: map[string]int{},
	}
	dir := t.TempDir()
	for i := range nodes {
		name := fmt.Sprintf("node%02d", i)
		n := &worldNode{name: name, path: filepath.Join(dir, name), pods: map[ID]Interface{}}
		w.nodes = append(w.nodes, n)
		w.open(n)
	}
	return w
}

func (w *world) open(n *worldNode) {
	var err error
	n.allocator, err = Open(n.path, n.name, Options{Store: w.store, Log: slog.New(slog.DiscardHandler), BootID: fmt.Sprint(n.boot)})
	w.must(err)
	w.must(n.allocator.SetPools(w.pools))
	var live []Interface
	for _, i := range n.pods {
		live = append(live, i)
	}
	slices.SortFunc(live, func(a, b Interface) int { return slices.Compare(a.key(), b.key()) })
	r, err := n.allocator.Reconcile(live)
	w.must(err)
	if len(r.Conflicts) > 0 {
		w.t.Fatalf("%s: %v", n.name, r.Conflicts)
	}
	w.confirm(n)
}

func (w *world) confirm(n *worldNode) {
	lost, err := n.allocator.ConfirmBlocks(w.t.Context())
	if err != nil && !errors.Is(err, store.ErrUnavailable) || len(lost) > 0 {
		w.t.Fatalf("%s: confirm: lost %v, %v", n.name, lost, err)
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// step does one random thing on one node.
func (w *world) step() {
	n := w.nodes[w.random.IntN(len(w.nodes))]
	attaching := 300
	if w.steps++; w.steps/2000%2 == 0 { // fill up, then drain
		attaching = 700
	}
	switch dice := w.random.IntN(1000); {
	case dice < attaching:
		w.attach(n)
	case dice < 960:
		w.detach(n)
	case dice < 980:
		released, err := n.allocator.ReleaseEmpty(w.t.Context())
		w.tolerate(err)
		w.counts["released block"] += len(released)
	case dice < 990:
		w.store.SetDown(w.random.IntN(3) == 0)
	case dice < 994:
		w.confirm(n)
	case dice < 996: // a pool comes or goes
		w.pools[1].Spec.Disabled = !w.pools[1].Spec.Disabled
		for _, n := range w.nodes {
			w.must(n.allocator.SetPools(w.pools))
		}
	default:
		w.crash(n)
	}
}

// crash stops an agent: alone, or with the machine, or with loss of the
// journal.
func (w *world) crash(n *worldNode) {
	w.must(n.allocator.Close())
	w.counts["crash"]++
	switch w.random.IntN(4) {
	case 0:
		n.boot++
		w.gone(n)
	case 1:
		w.must(os.Truncate(n.path, w.random.Int64N(10000)))
	case 2: // a pod's namespace went away meanwhile
		for _, id := range slices.Clone(n.order[:min(len(n.order), 2)]) {
			w.forget(n, id)
		}
	}
	w.open(n)
}

func (w *world) gone(n *worldNode) {
	for _, id := range slices.Clone(n.order) {
		w.forget(n, id)
	}
}

func (w *world) forget(n *worldNode, id ID) {
	for _, addr := range n.pods[id].Addresses {
		delete(w.owner, addr)
	}
	delete(n.pods, id)
	n.order = slices.DeleteFunc(n.order, func(o ID) bool { return o == id })
}

func (w *world) tolerate(err error) {
	w.t.Helper()
	if err != nil && !errors.Is(err, store.ErrUnavailable) {
		w.t.Fatal(err)
	}
}

func (w *world) attach(n *worldNode) bool {
	w.serial++
	req := request(fmt.Sprint("pod", w.serial))
	if w.random.IntN(10) == 0 {
		req.Want = []netip.Addr{add(netip.MustParseAddr("10.0.0.0"), w.random.Uint64N(256))}
	}
	al, err := n.allocator.Allocate(w.t.Context(), req)
	switch {
	case errors.Is(err, ErrExhausted):
		w.counts["exhausted"]++
		return false
	case errors.Is(err, ErrAddress), errors.Is(err, store.ErrUnavailable):
		w.counts["refused"]++
		return false
	}
	w.must(err)
	w.counts["attach"]++
	if len(al.Addresses) != 2 {
		w.t.Fatalf("addresses %v", al.Addresses)
	}
	who := n.name + " " + req.ContainerID
	for i, addr := range al.Addresses {
		if other, used := w.owner[addr]; used {
			w.t.Fatalf("%s was given to %s and is %s's", addr, who, other)
		}
		pool := mustPool(w.t, []string{"10.0.0.0/24", "fd00::/119"}[i], 0)
		if pool.Prefix.Contains(addr) && pool.Reserved(addr) {
			w.t.Fatalf("%s is reserved", addr)
		}
		w.owner[addr] = who
	}
	n.pods[req.ID] = Interface{ID: req.ID, HostInterface: req.HostInterface, Addresses: al.Addresses}
	n.order = append(n.order, req.ID)
	return true
}

func (w *world) detach(n *worldNode) {
	if len(n.order) == 0 {
		return
	}
	id := n.order[w.random.IntN(len(n.order))]
	al, ok, err := n.allocator.Release(id)
	if err != nil || !ok || !slices.Equal(al.Addresses, n.pods[id].Addresses) {
		w.t.Fatalf("release %s: %v, %v, %v; want %v", id, al, ok, err, n.pods[id])
	}
	w.forget(n, id)
}

// TestNothingTwiceNothingLost does random things on several nodes that share a
// bad store. No address may ever have two owners, and when all pods are gone,
// every address has to be free again.
func TestNothingTwiceNothingLost(t *testing.T) {
	operations, seeds := 30000, 4
	if testing.Short() {
		operations, seeds = 2000, 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, uint64(seed), 4)
			for range operations {
				w.step()
			}
			t.Log(w.counts)
			for _, n := range w.nodes {
				for _, id := range slices.Clone(n.order) {
					if _, ok := n.pods[id]; ok {
						_, _, err := n.allocator.Release(id)
						w.must(err)
						w.forget(n, id)
					}
				}
				if list := n.allocator.List(); len(list) > 0 {
					t.Errorf("%s still has %v", n.name, list)
				}
			}
			w.store.SetDown(false)
			w.wholePoolsAreFree()
		})
	}
}

// wholePoolsAreFree takes every address there is.
func (w *world) wholePoolsAreFree() {
	w.pools[1].Spec.Disabled = false
	w.pools[2].Spec.CIDR = "fd00::/112" // more than enough
	for _, n := range w.nodes {
		w.must(n.allocator.SetPools(w.pools))
	}
	for range w.nodes {
		for _, n := range w.nodes {
			w.confirmUntilItWorks(n)
		}
	}
	for _, n := range w.nodes {
		for failures := 0; failures < 50; {
			if !w.attach(n) {
				failures++
			}
		}
	}
	if got, want := len(w.owner)/2, 254+30; got != want {
		w.t.Errorf("%d IPv4 addresses can be given out, want %d", got, want)
	}
}

func (w *world) confirmUntilItWorks(n *worldNode) {
	for {
		if _, err := n.allocator.ConfirmBlocks(w.t.Context()); err == nil {
			return
		} else if !errors.Is(err, store.ErrUnavailable) {
			w.t.Fatal(err)
		}
	}
}

// TestCorruptJournal damages the journal at random. Whatever happened, Open
// works, and what the kernel has is not given out again.
func TestCorruptJournal(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 60
	}
	random := rand.New(rand.NewPCG(1, 2))
	s := memory.New()
	pool := ipPool("p", "10.0.0.0/22", 26)
	path := filepath.Join(t.TempDir(), "ipam.db")
	a := open(t, path, "node01", s, pool)
	_, err := a.Reconcile(nil)
	if err != nil {
		t.Fatal(err)
	}
	var live []Interface
	for i := range 150 {
		r := request(fmt.Sprint(i))
		live = append(live, Interface{HostInterface: r.HostInterface, ID: r.ID, Addresses: mustAllocate(t, a, r)})
	}
	for i := range 20 {
		mustRelease(t, a, fmt.Sprint(i))
	}
	live = live[20:]
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	moved := 0
	for range rounds {
		if err := os.WriteFile(path, damage(random, good), 0o600); err != nil {
			t.Fatal(err)
		}
		a := open(t, path, "node01", s, pool)
		if a.Recovered() != "" {
			moved++
			if err := os.Remove(a.Recovered()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.Reconcile(live); err != nil {
			t.Fatal(err)
		}
		if n := len(a.List()); n != len(live) {
			t.Fatalf("%d allocations, want %d", n, len(live))
		}
		used := map[netip.Addr]bool{}
		for _, i := range live {
			used[i.Addresses[0]] = true
		}
		for i := range 5 {
			if addr := mustAllocate(t, a, request(fmt.Sprint("new", i)))[0]; used[addr] {
				t.Fatalf("%s is given out twice", addr)
			}
		}
		a.Close()
	}
	t.Logf("%d of %d damaged journals were moved aside", moved, rounds)
	if moved == 0 {
		t.Error("no damage was ever noticed")
	}
}

func damage(random *rand.Rand, good []byte) []byte {
	bad := slices.Clone(good)
	switch random.IntN(4) {
	case 0:
		return bad[:random.IntN(len(bad))]
	case 1: // a page that was never written
		page := random.IntN(len(bad)/4096) * 4096
		clear(bad[page : page+4096])
	case 2: // a page in the wrong place
		from, to := random.IntN(len(bad)/4096)*4096, random.IntN(len(bad)/4096)*4096
		copy(bad[to:to+4096], good[from:from+4096])
	default:
		for range 1 + random.IntN(20) {
			bad[random.IntN(len(bad))] ^= 1 << random.IntN(8)
		}
	}
	return bad
}
