package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

// open opens an allocator whose kernel has no pods yet.
func open(t testing.TB, path, node string, s store.Store, pools ...*api.IPPool) *Allocator {
	t.Helper()
	a, err := Open(path, node, Options{Store: s, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	if err := a.SetPools(pools); err != nil {
		t.Fatal(err)
	}
	return a
}

func newAllocator(t testing.TB, node string, s store.Store, pools ...*api.IPPool) *Allocator {
	t.Helper()
	a := open(t, filepath.Join(t.TempDir(), "ipam.journal"), node, s, pools...)
	if _, err := a.Reconcile(nil); err != nil {
		t.Fatal(err)
	}
	return a
}

func request(name string, want ...string) Request {
	r := Request{ID: ID{name, "eth0"}, Namespace: "default", Pod: name, HostInterface: "tw-" + name}
	for _, w := range want {
		r.Want = append(r.Want, netip.MustParseAddr(w))
	}
	return r
}

func mustAllocate(t testing.TB, a *Allocator, r Request) []netip.Addr {
	t.Helper()
	al, err := a.Allocate(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return al.Addresses
}

func mustRelease(t testing.TB, a *Allocator, name string) {
	t.Helper()
	if _, ok, err := a.Release(ID{name, "eth0"}); err != nil || !ok {
		t.Fatalf("release %s: %v, %v", name, ok, err)
	}
}

func blocksInStore(t testing.TB, s store.Store) map[string]string {
	t.Helper()
	list, err := s.List(context.Background(), api.IPAMBlockKind, "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, o := range list.Items {
		out[o.(*api.IPAMBlock).Spec.CIDR] = o.(*api.IPAMBlock).Spec.Affinity
	}
	return out
}

func TestAllocateFromOwnBlockNeedsNoStore(t *testing.T) {
	s := memory.New()
	a := newAllocator(t, "node01", s, ipPool("v4", "10.244.0.0/16", 0), ipPool("v6", "fd00:10::/64", 0))
	first := mustAllocate(t, a, request("a"))
	if len(first) != 2 || !first[0].Is4() || !first[1].Is6() {
		t.Fatalf("addresses %v, want one of each family, IPv4 first", first)
	}
	s.SetDown(true)
	for i := range 60 {
		mustAllocate(t, a, request(fmt.Sprint(i)))
	}
	for i := range 10 {
		_, err := a.Allocate(t.Context(), request(fmt.Sprint("more", i)))
		if err != nil && !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("a full block and no store: %v", err)
		}
	}
	s.SetDown(false)
	mustAllocate(t, a, request("last"))
	for cidr, owner := range blocksInStore(t, s) {
		if owner != "host:node01" {
			t.Errorf("block %s belongs to %q", cidr, owner)
		}
	}
}

func TestOldestFreedComesLast(t *testing.T) {
	// Addresses .1 to .6 of one block.
	a := newAllocator(t, "node01", memory.New(), ipPool("p", "10.0.0.0/29", 29))
	seen := map[netip.Addr]bool{}
	for i := range 3 {
		seen[mustAllocate(t, a, request(fmt.Sprint(i)))[0]] = true
	}
	mustRelease(t, a, "1")
	mustRelease(t, a, "0")
	for i := 3; i < 6; i++ {
		addr := mustAllocate(t, a, request(fmt.Sprint(i)))[0]
		if seen[addr] {
			t.Errorf("%s is used again though others were never used", addr)
		}
		seen[addr] = true
	}
	if got := mustAllocate(t, a, request("6"))[0].String(); got != "10.0.0.2" {
		t.Errorf("got %s, want 10.0.0.2, which was freed first", got)
	}
	if got := mustAllocate(t, a, request("7"))[0].String(); got != "10.0.0.1" {
		t.Errorf("got %s, want 10.0.0.1", got)
	}
}

func TestExhausted(t *testing.T) {
	s := memory.New()
	a := newAllocator(t, "node01", s, ipPool("p", "10.244.0.0/30", 30))
	mustAllocate(t, a, request("a"))
	if err := a.Ready(); err != nil {
		t.Errorf("one address is left: %v", err)
	}
	mustAllocate(t, a, request("b"))
	_, err := a.Allocate(t.Context(), request("c"))
	const want = "pool 10.244.0.0/30 is exhausted on node01: remove pods from this node or add a pool"
	if !errors.Is(err, ErrExhausted) || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if err := a.Ready(); !errors.Is(err, ErrExhausted) {
		t.Errorf("ready: %v", err)
	}
	if err := a.SetPools([]*api.IPPool{ipPool("p", "10.244.0.0/30", 30), ipPool("q", "10.245.0.0/30", 30)}); err != nil {
		t.Fatal(err)
	}
	mustAllocate(t, a, request("c"))
	mustRelease(t, a, "a")
	if err := a.Ready(); err != nil {
		t.Errorf("after a release: %v", err)
	}
}

func TestAllocateTwice(t *testing.T) {
	a := newAllocator(t, "node01", memory.New(), ipPool("p", "10.244.0.0/16", 0))
	mustAllocate(t, a, request("a"))
	if _, err := a.Allocate(t.Context(), request("a")); !errors.Is(err, ErrExists) {
		t.Errorf("second time: %v", err)
	}
	second := request("a")
	second.IfName = "eth1"
	mustAllocate(t, a, second)
	mustRelease(t, a, "a")
	if _, ok, err := a.Release(ID{"a", "eth0"}); ok || err != nil {
		t.Errorf("second release: %v, %v", ok, err)
	}
	if n := len(a.List()); n != 1 {
		t.Errorf("%d allocations are left, want eth1's", n)
	}
}

func TestWant(t *testing.T) {
	s := memory.New()
	pools := []*api.IPPool{ipPool("v4", "10.244.0.0/16", 0), ipPool("v6", "fd00:10::/64", 0)}
	a, b := newAllocator(t, "node01", s, pools...), newAllocator(t, "node02", s, pools...)
	got := mustAllocate(t, a, request("a", "10.244.7.9"))
	if got[0].String() != "10.244.7.9" || len(got) != 2 {
		t.Errorf("got %v", got)
	}
	for _, c := range []struct {
		node *Allocator
		want []string
	}{
		{a, []string{"10.244.7.9"}},                // in use
		{b, []string{"10.244.7.10"}},               // another node's block
		{a, []string{"10.244.0.0"}},                // reserved
		{a, []string{"10.9.9.9"}},                  // no pool
		{a, []string{"10.244.1.1", "10.244.1.2"}},  // two of a family
		{a, []string{"10.244.1.1", "fd00:11::17"}}, // no pool for the second
	} {
		_, err := c.node.Allocate(t.Context(), request("x", c.want...))
		if !errors.Is(err, ErrAddress) {
			t.Errorf("%v: %v", c.want, err)
		}
	}
	mustRelease(t, a, "a")
	if got := mustAllocate(t, a, request("a", "10.244.7.9")); got[0].String() != "10.244.7.9" {
		t.Errorf("after release: %v", got)
	}
}

func TestPoolsAndNodes(t *testing.T) {
	east, off := ipPool("east", "10.1.0.0/16", 0), ipPool("off", "10.0.0.0/16", 0)
	east.Spec.NodeSelector = "zone == 'east'"
	off.Spec.Disabled = true
	a := newAllocator(t, "node01", memory.New(), off, east)
	if _, err := a.Allocate(t.Context(), request("a")); !errors.Is(err, ErrNoPool) {
		t.Errorf("no pool selects the node: %v", err)
	}
	a.SetNode(map[string]string{"zone": "east"}, Ranges{})
	if got := mustAllocate(t, a, request("a"))[0]; !netip.MustParsePrefix("10.1.0.0/16").Contains(got) {
		t.Errorf("got %s", got)
	}
	a.SetNode(nil, Ranges{})
	if _, err := a.Allocate(t.Context(), request("b")); !errors.Is(err, ErrNoPool) {
		t.Errorf("the pool selects the node no more: %v", err)
	}
	mustRelease(t, a, "a")
	if _, err := a.ConfirmBlocks(t.Context()); err != nil {
		t.Fatal(err)
	}
	released, _, err := a.releaseUnneeded(t.Context(), 0)
	if err != nil || len(released) != 1 || len(a.Blocks()) != 0 {
		t.Errorf("released %v, %v: want the block that no pool contains", released, err)
	}
	err = a.SetPools([]*api.IPPool{ipPool("bad", "10.0.0.1/8", 0), ipPool("good", "10.2.0.0/16", 0)})
	if err == nil {
		t.Error("a bad pool is no error")
	}
	mustAllocate(t, a, request("c"))
}

func TestBlockSizeChanged(t *testing.T) {
	s := memory.New()
	a := newAllocator(t, "node01", s, ipPool("p", "10.0.0.0/24", 26))
	mustAllocate(t, a, request("a"))
	for _, size := range []int{25, 28} {
		b := newAllocator(t, fmt.Sprint("node", size), s, ipPool("p", "10.0.0.0/24", size))
		for i := 0; ; i++ {
			if _, err := b.Allocate(t.Context(), request(fmt.Sprint(i))); errors.Is(err, ErrExhausted) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	var all []netip.Prefix
	for cidr := range blocksInStore(t, s) {
		p := netip.MustParsePrefix(cidr)
		for _, o := range all {
			if p.Overlaps(o) {
				t.Errorf("blocks %s and %s overlap", p, o)
			}
		}
		all = append(all, p)
	}
}

func TestReopen(t *testing.T) {
	s := memory.New()
	path := filepath.Join(t.TempDir(), "ipam.journal")
	pool := ipPool("p", "10.244.0.0/16", 0)
	a := open(t, path, "node01", s, pool)
	if _, err := a.Allocate(t.Context(), request("a")); !errors.Is(err, ErrNotReconciled) {
		t.Errorf("before Reconcile: %v", err)
	}
	if _, err := a.Reconcile(nil); err != nil {
		t.Fatal(err)
	}
	r := request("a")
	r.NetNS, r.Extra = "/run/netns/a", []byte(`{"labels":1}`)
	mustAllocate(t, a, r)
	mustAllocate(t, a, request("b"))
	mustAllocate(t, a, request("c"))
	freed := mustAllocate(t, a, request("d"))
	mustRelease(t, a, "d")
	want, blocks := a.List(), a.Blocks()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}

	s.SetDown(true)
	a = open(t, path, "node01", s, pool)
	if diff := cmp.Diff(want, a.List(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("after reopening (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(blocks, a.Blocks(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("blocks (-before +after):\n%s", diff)
	}
	// a lives; b is gone; of c the kernel has another address as well; x was
	// attached without the journal knowing.
	live := []Interface{
		{HostInterface: "tw-a", Addresses: want[0].Addresses},
		{HostInterface: "tw-c", Addresses: append([]netip.Addr{freed[0]}, want[2].Addresses...)},
		{HostInterface: "tw-x", Addresses: []netip.Addr{add(freed[0], 1), want[0].Addresses[0]}},
		{HostInterface: "tw-y", ID: ID{"y", "eth0"}, Addresses: []netip.Addr{add(freed[0], 2)}},
	}
	report, err := a.Reconcile(live)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Freed) != 1 || report.Freed[0].Pod != "b" || len(report.Adopted) != 3 || len(report.Conflicts) != 1 {
		t.Errorf("report %+v", report)
	}
	again, err := a.Reconcile(live)
	if err != nil || len(again.Freed)+len(again.Adopted) != 0 {
		t.Errorf("second time: %+v, %v", again, err)
	}
	// What the store knows of y is kept, once.
	if al, ok, err := a.Identify(ID{"y", "eth0"}, "ns", "y", []byte("e")); err != nil || !ok || al.Pod != "y" || len(al.Addresses) != 1 {
		t.Errorf("identify: %+v, %v, %v", al, ok, err)
	}
	for _, id := range []ID{{"y", "eth0"}, {"z", "eth0"}} {
		if al, ok, err := a.Identify(id, "ns", "other", nil); ok || err != nil {
			t.Errorf("identify %s: %+v, %v", id, al, err)
		}
	}
	if al, _ := a.Get(ID{"y", "eth0"}); al.Pod != "y" || string(al.Extra) != "e" {
		t.Errorf("after identifying: %+v", al)
	}
	used := map[netip.Addr]bool{}
	for _, al := range a.List() {
		for _, addr := range al.Addresses {
			used[addr] = true
		}
	}
	if len(used) != 5 {
		t.Errorf("%d addresses are used, want 5: %v", len(used), a.List())
	}
	for i := range 55 {
		if addr := mustAllocate(t, a, request(fmt.Sprint("n", i)))[0]; used[addr] {
			t.Fatalf("%s is given out twice", addr)
		} else {
			used[addr] = true
		}
	}
	if _, ok, err := a.Release(ID{"", "tw-x"}); !ok || err != nil {
		t.Errorf("release what was adopted without an ID: %v, %v", ok, err)
	}
}

func TestBlocksAfterABoot(t *testing.T) {
	s := memory.New()
	path := filepath.Join(t.TempDir(), "ipam.journal")
	openBoot := func(boot string) *Allocator {
		a, err := Open(path, "node01", Options{Store: s, Log: slog.New(slog.DiscardHandler), BootID: boot})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close() })
		_, err = a.Reconcile(nil)
		if err := errors.Join(err, a.SetPools([]*api.IPPool{ipPool("p", "10.0.0.0/24", 26)})); err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := openBoot("one")
	for i := range 100 {
		mustAllocate(t, a, request(fmt.Sprint(i)))
	}
	blocks := a.Blocks()
	if len(blocks) != 2 {
		t.Fatalf("blocks %v", blocks)
	}
	a.Close()

	// The node was thought dead: one block went to node02, the other is free.
	for _, b := range blocks {
		if err := (Claimer{s, "node01"}).Release(t.Context(), b.Prefix); err != nil {
			t.Fatal(err)
		}
	}
	if err := (Claimer{s, "node02"}).ClaimBlock(t.Context(), blocks[0].Prefix); err != nil {
		t.Fatal(err)
	}
	s.SetDown(true)
	a = openBoot("two")
	if _, err := a.Allocate(t.Context(), request("a")); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("allocated from a block that nobody confirmed: %v", err)
	}
	s.SetDown(false)
	lost, err := a.ConfirmBlocks(t.Context())
	if err != nil || len(lost) != 1 || lost[0] != blocks[0].Prefix {
		t.Errorf("lost %v, %v; want %s", lost, err, blocks[0].Prefix)
	}
	s.SetDown(true)
	if got := mustAllocate(t, a, request("a"))[0]; !blocks[1].Prefix.Contains(got) {
		t.Errorf("got %s, want one of %s", got, blocks[1].Prefix)
	}
	a.Close()
	a = openBoot("two")
	mustAllocate(t, a, request("b"))
}

func TestParallel(t *testing.T) {
	s := memory.New()
	a := newAllocator(t, "node01", s, ipPool("p", "10.244.0.0/20", 28))
	var mu sync.Mutex
	seen := map[netip.Addr]string{}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				name := fmt.Sprintf("%d-%d", w, i)
				al, err := a.Allocate(t.Context(), request(name))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other, ok := seen[al.Addresses[0]]; ok {
					t.Errorf("%s went to %s and %s", al.Addresses[0], other, name)
				}
				seen[al.Addresses[0]] = name
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n := len(blocksInStore(t, s)); n < 25 || n > 27 {
		t.Errorf("%d blocks for 400 addresses", n)
	}
}

func TestKeepClaimsAhead(t *testing.T) {
	s := memory.New()
	a := newAllocator(t, "node01", s, ipPool("p", "10.244.0.0/27", 28))
	synctest.Test(t, func(t *testing.T) {
		a.low = make(chan struct{}, 1) // a channel of this bubble
		a.claiming = make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { a.Keep(ctx, func() {}); close(done) }()
		synctest.Wait()
		if n := len(blocksInStore(t, s)); n != 1 {
			t.Errorf("%d blocks at the start, want 1", n)
		}
		for i := range 8 {
			if _, err := a.Allocate(ctx, request(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if n := len(blocksInStore(t, s)); n != 2 {
			t.Errorf("%d blocks when 7 addresses are left, want 2", n)
		}
		cancel()
		<-done
	})
}

func BenchmarkAllocateRelease(b *testing.B) {
	a := newAllocator(b, "node01", memory.New(), ipPool("p", "10.244.0.0/16", 0))
	for b.Loop() {
		mustAllocate(b, a, request("a"))
		mustRelease(b, a, "a")
	}
}

// Who is being taken down when the agent dies is so for the next one.
func TestLeaving(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.journal")
	s := memory.New()
	a := open(t, path, "node01", s, ipPool("v4", "10.0.0.0/24", 26))
	if _, err := a.Reconcile(nil); err != nil {
		t.Fatal(err)
	}
	mustAllocate(t, a, request("goes"))
	mustAllocate(t, a, request("stays"))
	for range 2 {
		if al, ok, err := a.Leave(ID{"goes", "eth0"}); !al.Leaving || !ok || err != nil {
			t.Errorf("leave: %+v, %t, %v", al, ok, err)
		}
	}
	if _, ok, err := a.Leave(ID{"nobody", "eth0"}); ok || err != nil {
		t.Errorf("who has nothing leaves: %t, %v", ok, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a, err := Open(path, "node01", Options{Store: s, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for name, leaving := range map[string]bool{"goes": true, "stays": false} {
		if al, ok := a.Get(ID{name, "eth0"}); al.Leaving != leaving || !ok {
			t.Errorf("after a restart: %+v", al)
		}
	}
}
