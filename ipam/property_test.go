package ipam

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
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

var (
	seed  = flag.Uint64("seed", 0, "begin the property test with this seed instead of a random one")
	cases = flag.Int("cases", 4000, "how many random operations the property test tries")
)

// world is several nodes, and the truth about who has which address: the
// kernels' view, which no allocator sees.
type world struct {
	t      *testing.T
	random *rand.Rand
	store  *memory.Store
	steady bool // the store never fails, and agents crash alone
	pools  []*api.IPPool
	usable int // IPv4 addresses that can be given out
	nodes  []*worldNode
	owner  map[netip.Addr]string
	stored map[api.Key][]netip.Addr // what the store says that pods have
	cutOff []api.Key                // pods that run without an interface
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
	synced     []byte // the journal's file, as it was synced last
	damaged    bool   // the journal is not as the agent left it
	down       bool
	failed     bool // the machine failed, and what it may have lost is not settled
	*bomb
}

// newWorld has a pool of IPv4 addresses, of which so many can be given out, and
// two more pools. All are small, so that they run out.
func newWorld(t *testing.T, seed uint64, nodes int, pool string, usable int) *world {
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, seed)), store: memory.New(),
		pools:  []*api.IPPool{ipPool("v4", pool, 29), ipPool("w4", "10.9.0.0/27", 29), ipPool("v6", "fd00::/119", 123)},
		usable: usable + 30,
		owner:  map[netip.Addr]string{},
		stored: map[api.Key][]netip.Addr{},
		counts: map[string]int{},
	}
	dir := journalDir(t)
	for i := range nodes {
		name := fmt.Sprintf("node%02d", i)
		n := &worldNode{name: name, path: filepath.Join(dir, name), pods: map[ID]Interface{}, bomb: &bomb{left: -1}}
		w.nodes = append(w.nodes, n)
		w.open(n)
	}
	return w
}

// open is an agent's start.
func (w *world) open(n *worldNode) {
	a, err := Open(n.path, n.name, Options{Store: mortalStore{w.store, w, n.bomb}, Log: slog.New(slog.DiscardHandler), BootID: fmt.Sprint(n.boot), Ahead: 2, Survey: w.survey(n)})
	w.must(err)
	n.allocator = a
	a.patience = 0 // no other node gives a block back meanwhile
	a.journal = mortalJournal{a.journal.(*journal), n}
	n.keepSynced()
	if a.Recovered() != "" {
		w.counts["corrupt journal"]++
		w.must(os.Remove(a.Recovered()))
		if !n.damaged {
			w.t.Fatalf("%s takes its own journal for corrupt", n.name)
		}
	}
	n.damaged = false
	w.must(a.SetPools(w.pools))
	r, err := a.Reconcile(n.live())
	w.must(err)
	if len(r.Conflicts) > 0 {
		w.t.Fatalf("%s: %v", n.name, r.Conflicts)
	}
	if got, want := len(a.List()), len(n.pods); got != want {
		w.t.Fatalf("%s has %d allocations after its start, and %d pods", n.name, got, want)
	}
	w.tellAll(n)
	_ = w.confirm(n)
}

// live is what the kernel tells of a node's pods.
func (n *worldNode) live() (live []Interface) {
	for _, i := range n.pods {
		live = append(live, i)
	}
	slices.SortFunc(live, func(a, b Interface) int { return a.ID.compare(b.ID) })
	return live
}

// confirm compares a node's blocks with the store. What a disk kept may be older
// than what was written, and a block that was given back since be another node's;
// nothing was given out from it meanwhile. Otherwise no block is ever lost.
func (w *world) confirm(n *worldNode) error {
	lost, err := n.allocator.ConfirmBlocks(w.t.Context())
	w.tolerate(err)
	if len(lost) > 0 && !n.failed {
		w.t.Fatalf("%s lost %v", n.name, lost)
	}
	n.failed = n.failed && err != nil
	return err
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// step does one random thing on one node, which may crash on the way.
func (w *world) step() {
	n := w.nodes[w.random.IntN(len(w.nodes))]
	w.steps++
	if n.down {
		if w.random.IntN(4) == 0 {
			w.restart(n)
		}
		return
	}
	if w.random.IntN(2) == 0 {
		n.left = w.random.IntN(1 + w.random.IntN(8)) // most operations have few steps
	}
	if !n.survives(func() { w.operate(n) }) {
		w.counts["crash "+n.last]++
		w.crash(n, w.random.IntN(3) == 0)
	}
}

// operate is what an agent does; first the node fills up, then it drains.
func (w *world) operate(n *worldNode) {
	attaching := 300
	if w.steps/100%2 == 0 {
		attaching = 700
	}
	switch dice := w.random.IntN(1000); {
	case dice < attaching:
		w.attach(n)
	case dice < 920:
		w.detach(n)
	case dice < 960:
		if w.random.IntN(2) == 0 { // the node is drained, without a crash
			left := n.left
			for n.left = -1; len(n.order) > 0; {
				w.detach(n)
			}
			n.left = left
		}
		released, _, err := n.allocator.releaseUnneeded(w.t.Context(), 0)
		w.tolerate(err)
		w.counts["released block"] += len(released)
	case dice < 970:
		w.tolerate(n.allocator.prepare(w.t.Context()))
	case dice < 980:
		w.store.SetDown(w.random.IntN(3) == 0)
	case dice < 988:
		_ = w.confirm(n)
	case dice < 990:
		w.reinstall(n)
	case dice < 992:
		w.storeHears()
	case dice < 994:
		w.cutOffEnds(n)
	default: // a pool comes or goes
		w.pools[1].Spec.Disabled = !w.pools[1].Spec.Disabled
		for _, n := range w.nodes {
			if !n.down {
				w.must(n.allocator.SetPools(w.pools))
			}
		}
	}
}

// crash leaves what is left of a crashed agent, or of its machine: then its pods
// are gone and the journal is what the disk has kept of it. The agent stays down
// while the others go on.
func (w *world) crash(n *worldNode, machine bool) {
	n.down = true
	w.must(n.allocator.Close())
	switch {
	case machine:
		n.boot++
		n.failed, n.damaged = true, true
		w.gone(n)
		w.must(n.powerFailure(w.random))
	case w.steady:
	case w.random.IntN(8) == 0:
		n.damaged = true
		w.must(os.Truncate(n.path, w.random.Int64N(10000)))
	case w.random.IntN(8) == 0:
		w.must(os.Remove(n.path))
	case w.random.IntN(8) == 0: // pods' namespaces went away meanwhile
		for _, id := range slices.Clone(n.order[:min(len(n.order), 2)]) {
			w.forget(n, id)
		}
	}
	if w.random.IntN(8) == 0 { // it crashed while it wrote a fresh journal
		w.must(os.WriteFile(n.path+".new", []byte("half a journal"), 0o600))
	}
}

func (w *world) restart(n *worldNode) {
	n.down = false
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
	al, ok := w.allocate(n, req)
	if ok {
		w.attached(n, req.ID, al)
	}
	return ok
}

func (w *world) allocate(n *worldNode, req Request) (Allocation, bool) {
	al, err := n.allocator.Allocate(w.t.Context(), req)
	switch {
	case errors.Is(err, ErrExhausted):
		w.counts["exhausted"]++
		return al, false
	case errors.Is(err, ErrAddress), errors.Is(err, store.ErrUnavailable):
		w.counts["refused"]++
		return al, false
	}
	w.must(err)
	w.counts["attach"]++
	return al, true
}

// attached notes that the kernel has the pod, whose addresses nobody else may
// have.
func (w *world) attached(n *worldNode, id ID, al Allocation) {
	if len(al.Addresses) != 2 {
		w.t.Fatalf("addresses %v", al.Addresses)
	}
	who := n.name + " " + id.ContainerID
	for i, addr := range al.Addresses {
		if other, used := w.owner[addr]; used {
			w.t.Fatalf("%s was given to %s and is %s's", addr, who, other)
		}
		pool := mustPool(w.t, w.pools[2*i].Spec.CIDR, 0)
		if pool.Prefix.Contains(addr) && pool.Reserved(addr) {
			w.t.Fatalf("%s is reserved", addr)
		}
		w.owner[addr] = who
	}
	w.tell(api.Key{Namespace: al.Namespace, Name: al.Pod}, al.Addresses)
	n.pods[id] = Interface{ID: id, HostInterface: "tw-" + id.ContainerID, Addresses: al.Addresses}
	n.order = append(n.order, id)
}

// detach is as an agent does it: the interface goes first.
func (w *world) detach(n *worldNode) {
	if len(n.order) == 0 {
		return
	}
	id := n.order[w.random.IntN(len(n.order))]
	want := n.pods[id].Addresses
	w.forget(n, id)
	al, ok, err := n.allocator.Release(id)
	if err != nil || !ok || !slices.Equal(al.Addresses, want) {
		w.t.Fatalf("release %s: %v, %v, %v; want %v", id, al, ok, err, want)
	}
}

// operationsInAWorld is after how many operations all is taken back, all
// addresses are counted and another world begins.
const operationsInAWorld = 500

// TestNothingTwiceNothingLost does random things on several nodes that share a
// bad store. A case is one operation of one agent, which crashes at any of its
// steps in every fourth case or so: before or after a write of the journal or of
// the store. Now and then a node is installed anew while its pods run on, which the
// store knows alone. No address may ever have two owners, after each restart the
// allocator has exactly what the kernel has, and when all pods are gone, every
// address has to be free again.
func TestNothingTwiceNothingLost(t *testing.T) {
	first := cmp.Or(*seed, rand.Uint64())
	counts := map[string]int{}
	done := 0
	for number := uint64(0); done < *cases; number++ {
		t.Run(fmt.Sprint("seed", first+number), func(t *testing.T) {
			w := newWorld(t, first+number, 4, "10.0.0.0/24", 254)
			for range min(operationsInAWorld, *cases-done) {
				w.step()
				done++
			}
			w.end()
			for what, n := range w.counts {
				counts[what] += n
			}
		})
		if t.Failed() {
			t.Fatalf("repeat it with -seed %d", first+number)
		}
	}
	t.Logf("%d operations, -seed %d", done, first)
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%7d %s", counts[what], what)
	}
}

// end takes all pods away; then all addresses there are can be given out.
func (w *world) end() {
	w.store.SetDown(false)
	for _, n := range w.nodes {
		if n.down {
			w.restart(n)
		}
		for len(n.order) > 0 {
			w.detach(n)
		}
		if list := n.allocator.List(); len(list) > 0 {
			w.t.Errorf("%s still has %v", n.name, list)
		}
	}
	for len(w.cutOff) > 0 {
		w.cutOffEnds(nil)
	}
	w.storeHears()
	w.wholePoolsAreFree()
	for _, n := range w.nodes {
		w.must(n.allocator.Close())
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
	if got := len(w.owner) / 2; got != w.usable {
		w.t.Errorf("%d IPv4 addresses can be given out, want %d", got, w.usable)
	}
}

func (w *world) confirmUntilItWorks(n *worldNode) {
	for w.confirm(n) != nil {
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
	path := filepath.Join(journalDir(t), "ipam.journal")
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
