package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

// nodes are allocators that share a store and keep their blocks, as agents have
// them do. They live in a bubble of synctest, whose time is not ours.
type nodes struct {
	t     *testing.T
	store *memory.Store
	dir   string

	mu  sync.Mutex
	all map[string]*keeper
}

type keeper struct {
	*Allocator
	stop func()
}

// inNodes runs f in a bubble with these nodes and pools.
func inNodes(t *testing.T, count int, pools []*api.IPPool, f func(*testing.T, *nodes)) {
	dir := journalDir(t)
	synctest.Test(t, func(t *testing.T) {
		n := &nodes{t: t, store: memory.New(), dir: dir, all: map[string]*keeper{}}
		for i := range count {
			n.start(fmt.Sprintf("node%02d", i), nil, pools...)
		}
		defer func() {
			for _, k := range n.all {
				k.stop()
			}
		}()
		f(t, n)
	})
}

// start starts a node with the pods that its kernel has.
func (n *nodes) start(name string, live []Interface, pools ...*api.IPPool) *keeper {
	a, err := Open(filepath.Join(n.dir, name), name, Options{Store: n.store, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		n.t.Fatal(err)
	}
	_, err = a.Reconcile(live)
	if err := errors.Join(err, a.SetPools(pools)); err != nil {
		n.t.Fatal(err)
	}
	if _, err := a.ConfirmBlocks(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	k := &keeper{Allocator: a}
	n.mu.Lock()
	for other, k := range n.all {
		a.SetWanted(other, k.Wanted())
	}
	n.all[name] = k
	n.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	followed, kept := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(followed)
		store.Follow(ctx, n.store, api.IPAMBlockKind, store.Handler{
			Put: func(obj api.Object) {
				b := obj.(*api.IPAMBlock)
				owner, _ := b.Owner()
				a.Heard(b.Name, netip.MustParsePrefix(b.Spec.CIDR), owner)
			},
			Deleted: func(key api.Key) { a.HeardGone(key.Name) },
		})
	}()
	go func() {
		defer close(kept)
		a.Keep(ctx, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			wants := a.Wanted()
			for other, k := range n.all {
				if other != name {
					k.SetWanted(name, wants)
				}
			}
		})
	}()
	k.stop = func() {
		cancel()
		<-followed
		<-kept
		if err := a.Close(); err != nil {
			n.t.Error(err)
		}
	}
	synctest.Wait()
	return k
}

// setPools has all nodes know other pools.
func (n *nodes) setPools(pools ...*api.IPPool) {
	for _, k := range n.all {
		if err := k.SetPools(pools); err != nil {
			n.t.Fatal(err)
		}
	}
}

// passes lets time pass.
func (n *nodes) passes(d time.Duration) {
	time.Sleep(d) // of the bubble
	synctest.Wait()
}

// expectBlocks holds the store's blocks, and the journals', against those wanted:
// their number by node.
func (n *nodes) expectBlocks(when string, want map[string]int) {
	n.t.Helper()
	got := map[string]int{}
	for _, affinity := range blocksInStore(n.t, n.store) {
		got[affinity[len(affinityPrefix):]]++
	}
	for name, k := range n.all {
		if got[name] != want[name] || len(k.Blocks()) != want[name] {
			n.t.Errorf("%s: %s has %d blocks by the store and %d by its journal, want %d: %v", when, name, got[name], len(k.Blocks()), want[name], k.Blocks())
		}
	}
}

func disabled(p *api.IPPool) *api.IPPool {
	q := *p
	q.Spec.Disabled = true
	return &q
}

// TestUnneededBlocksAreGivenBack: a running agent gives back a block that its node no
// longer needs, but not before the last pod with an address of it is gone.
func TestUnneededBlocksAreGivenBack(t *testing.T) {
	pool, other := ipPool("p", "10.0.0.0/22", 26), ipPool("q", "10.1.0.0/22", 26)
	for _, c := range []struct {
		what   string
		change func(*nodes)
	}{
		{"the pool is deleted", func(n *nodes) { n.setPools(other) }},
		{"the pool is disabled", func(n *nodes) { n.setPools(disabled(pool), other) }},
		{"the pool selects other nodes", func(n *nodes) {
			q := *pool
			q.Spec.NodeSelector = "zone == 'east'"
			n.setPools(&q, other)
		}},
		{"blocks of the pool have another size", func(n *nodes) { n.setPools(ipPool("p", "10.0.0.0/22", 28)) }},
		{"the node has a range of its own", func(n *nodes) {
			n.all["node00"].SetNode(nil, Ranges{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/25")}})
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			inNodes(t, 1, []*api.IPPool{pool}, func(t *testing.T, n *nodes) {
				a := n.all["node00"]
				old := mustAllocate(t, a.Allocator, request("old"))[0]
				if netip.MustParsePrefix("10.0.1.0/25").Contains(old) {
					t.Fatalf("%s is in the range that is to be the node's", old)
				}
				c.change(n)
				n.passes(2 * releaseGrace)
				if len(a.Blocks()) != 2 && c.what != "blocks of the pool have another size" {
					t.Errorf("the block of a pod is gone, or none is ahead: %v", a.Blocks())
				}
				fresh := mustAllocate(t, a.Allocator, request("new"))[0]
				for _, b := range a.Blocks() {
					if b.Prefix.Contains(old) && b.Prefix.Contains(fresh) {
						t.Errorf("%s was given out of the old block %s", fresh, b.Prefix)
					}
				}
				mustRelease(t, a.Allocator, "old")
				n.passes(releaseGrace / 2)
				if !slices.ContainsFunc(a.Blocks(), func(b Block) bool { return b.Prefix.Contains(old) }) {
					t.Error("the block was given back at once")
				}
				n.passes(releaseGrace)
				for cidr := range blocksInStore(t, n.store) {
					if netip.MustParsePrefix(cidr).Contains(old) {
						t.Errorf("block %s is still claimed", cidr)
					}
				}
				n.setPools()
				mustRelease(t, a.Allocator, "new")
				n.passes(2 * releaseGrace)
				n.expectBlocks("without pools and pods", nil)
			})
		})
	}
}

// TestSpareBlocksAreGivenBack: a node keeps no more than what it claims ahead,
// also of blocks that its journal does not know: of a claim that was cut short, or
// one of two that were claimed at once.
func TestSpareBlocksAreGivenBack(t *testing.T) {
	pool := ipPool("p", "10.0.0.0/22", 26)
	inNodes(t, 2, []*api.IPPool{pool}, func(t *testing.T, n *nodes) {
		a := n.all["node00"]
		n.expectBlocks("at the start", map[string]int{"node00": 1, "node01": 1})
		for i := range 200 {
			mustAllocate(t, a.Allocator, request(fmt.Sprint(i)))
		}
		n.expectBlocks("with 200 pods", map[string]int{"node00": 4, "node01": 1})
		for i := range 200 {
			mustRelease(t, a.Allocator, fmt.Sprint(i))
		}
		n.passes(2 * releaseGrace)
		n.expectBlocks("without pods", map[string]int{"node00": 1, "node01": 1})

		for block := range mustPool(t, "10.0.0.0/22", 26).Candidates("node00") {
			if err := a.claimer.create(t.Context(), block); err == nil {
				break
			}
		}
		n.passes(2 * releaseGrace)
		n.expectBlocks("after a claim that was cut short", map[string]int{"node00": 1, "node01": 1})
		before, _ := n.store.List(t.Context(), api.IPAMBlockKind, "")
		n.passes(time.Hour)
		if after, err := n.store.List(t.Context(), api.IPAMBlockKind, ""); err != nil || before.Revision != after.Revision {
			t.Errorf("nodes without work write to the store: %v", err)
		}
	})
}

// TestNoPoolIsExhaustedWhileOthersHaveEmptyBlocks has nodes take as much of a pool
// as they can get, leave, and one of them take the whole pool.
func TestNoPoolIsExhaustedWhileOthersHaveEmptyBlocks(t *testing.T) {
	const usable = 30 // of 32: the first and the last are reserved
	for _, size := range []int{30, 29} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			inNodes(t, 4, []*api.IPPool{ipPool("p", "10.0.0.0/27", size)}, func(t *testing.T, n *nodes) {
				for range 3 {
					n.fill("node00", 4)
					n.fill("node01", 4)
					n.fill("node02", 4)
					n.fill("node03", usable) // what is left
					if _, err := n.all["node03"].Allocate(t.Context(), request("x")); !errors.Is(err, ErrExhausted) {
						t.Errorf("the pool is full, and another pod gets %v", err)
					}
					n.empty()
					began := time.Now()
					if got := n.fill("node03", usable); got != usable {
						t.Errorf("one node got %d addresses, want all %d", got, usable)
					}
					if took := time.Since(began); took > 10*time.Second {
						t.Errorf("it took %s", took)
					}
					if err := n.all["node03"].Exhausted(); err != nil {
						t.Errorf("exhausted: %v", err)
					}
					n.empty()
				}
				n.passes(5 * time.Minute)
				for name, k := range n.all {
					if wants := k.Wanted(); wants != nil {
						t.Errorf("%s still asks for %v", name, wants)
					}
				}
			})
		})
	}
}

// TestReadyWhileOthersHaveEmptyBlocks: a runtime that asks whether pods can be attached
// is not told that the pool is exhausted while Allocate would get another node's empty
// block, and neither is it told so for good after a pod was refused.
func TestReadyWhileOthersHaveEmptyBlocks(t *testing.T) {
	inNodes(t, 2, []*api.IPPool{ipPool("p", "10.0.0.0/28", 30)}, func(t *testing.T, n *nodes) {
		a := n.all["node00"]
		n.fill("node01", 5)
		n.passes(time.Second)
		owned := 0
		for _, b := range a.Blocks() {
			owned += b.Free
		}
		n.fill("node00", owned)
		n.passes(time.Second)
		if err := a.Ready(); err != nil {
			t.Errorf("another node has an empty block, and %v", err)
		}
		n.fillMore("node01", "rest", 14)
		if _, err := a.Allocate(t.Context(), request("refused")); !errors.Is(err, ErrExhausted) {
			t.Fatalf("all addresses are used, and %v", err)
		}
		n.passes(2 * wantTime)
		if err := a.Ready(); !errors.Is(err, ErrExhausted) {
			t.Errorf("all addresses are used, and ready: %v", err)
		}
		for _, al := range n.all["node01"].List() {
			mustRelease(t, n.all["node01"].Allocator, al.ContainerID)
		}
		n.passes(time.Second)
		if err := errors.Join(a.Ready(), a.Exhausted()); err != nil {
			t.Errorf("another node's blocks are empty now, and %v", err)
		}
		n.passes(2 * wantTime)
		if wants := a.Wanted(); wants != nil {
			t.Errorf("it still asks for %v", wants)
		}
	})
}

// fill attaches pods until there are so many or no address is left.
func (n *nodes) fill(name string, count int) (attached int) {
	return n.fillMore(name, "fill", count)
}

// fillMore is fill with pods of another name.
func (n *nodes) fillMore(name, pods string, count int) (attached int) {
	for i := range count {
		_, err := n.all[name].Allocate(n.t.Context(), request(fmt.Sprint(pods, "-", i)))
		if errors.Is(err, ErrExhausted) {
			break
		} else if err != nil {
			n.t.Fatal(err)
		}
		attached++
	}
	return attached
}

// empty detaches all pods of all nodes.
func (n *nodes) empty() {
	for _, k := range n.all {
		for _, al := range k.List() {
			mustRelease(n.t, k.Allocator, al.ContainerID)
		}
	}
}

// TestExhaustedIsTakenBack: exhaustion is reported from the first attachment that
// failed until the node has an address again.
func TestExhaustedIsTakenBack(t *testing.T) {
	pool, more := ipPool("p", "10.0.0.0/29", 29), ipPool("q", "10.1.0.0/29", 29)
	for _, c := range []struct {
		what   string
		change func(*nodes)
	}{
		{"a pod goes", func(n *nodes) { mustRelease(n.t, n.all["node00"].Allocator, "0") }},
		{"there is another pool", func(n *nodes) { n.setPools(pool, more) }},
		{"another node gives its block back", func(n *nodes) {
			n.setPools(pool, disabled(more)) // of which node01 has the only block
			n.all["node01"].SetNode(map[string]string{"zone": "none"}, Ranges{})
			q := *more
			q.Spec.NodeSelector = "!has(zone)"
			n.setPools(pool, &q)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			inNodes(t, 1, []*api.IPPool{pool}, func(t *testing.T, n *nodes) {
				a := n.all["node00"]
				for i := range 6 {
					mustAllocate(t, a.Allocator, request(fmt.Sprint(i)))
				}
				n.start("node01", nil, more)
				n.passes(time.Second)
				if err := a.Exhausted(); err != nil {
					t.Errorf("exhausted before any pod was refused: %v", err)
				}
				if _, err := a.Allocate(t.Context(), request("one more")); !errors.Is(err, ErrExhausted) {
					t.Fatal(err)
				}
				n.passes(2 * time.Second)
				if err := a.Exhausted(); !errors.Is(err, ErrExhausted) {
					t.Errorf("refused, and then %v", err)
				}
				c.change(n)
				n.passes(2 * releaseGrace)
				if err := a.Exhausted(); err != nil {
					t.Errorf("there is room, and %v", err)
				}
				mustAllocate(t, a.Allocator, request("one more"))
			})
		})
	}
}

// lateStore says that releases failed, and does them when it is told to.
type lateStore struct {
	*memory.Store
	late []func() error
}

func (s *lateStore) Delete(_ context.Context, kind *api.Kind, key api.Key, version string) error {
	s.late = append(s.late, func() error { return s.Store.Delete(context.Background(), kind, key, version) })
	return fmt.Errorf("%w: no answer", store.ErrUnavailable)
}

// TestLateRelease has the store do a release after the node has claimed the block
// again: the block stays.
func TestLateRelease(t *testing.T) {
	s := &lateStore{Store: memory.New()}
	pool := ipPool("p", "10.0.0.0/29", 29)
	a := newAllocator(t, "node01", s, pool)
	if _, err := a.ConfirmBlocks(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustAllocate(t, a, request("a"))
	mustRelease(t, a, "a")
	if err := a.SetPools(nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.releaseUnneeded(t.Context(), 0); !errors.Is(err, store.ErrUnavailable) {
		t.Fatal(err)
	}
	if err := a.SetPools([]*api.IPPool{pool}); err != nil {
		t.Fatal(err)
	}
	a.claimer.Store = s.Store // answers again
	for _, want := range [][]string{nil, {"10.0.0.3"}} {
		mustAllocate(t, a, request("a", want...))
		for _, release := range s.late {
			if err := release(); !errors.Is(err, store.ErrConflict) {
				t.Errorf("a late release: %v", err)
			}
		}
		mustRelease(t, a, "a")
	}
}
