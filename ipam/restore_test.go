package ipam

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/twill-net/twill/store/memory"
)

// TestBlocksOfARestoredStore has the store forget what a node claimed after the
// backup.
func TestBlocksOfARestoredStore(t *testing.T) {
	s := memory.New()
	pool := ipPool("p", "10.244.0.0/30", 31) // two blocks of two addresses, one of which is reserved
	backup := s.Backup()
	one := newAllocator(t, "node01", s, pool)
	mustAllocate(t, one, request("a"))
	two := newAllocator(t, "node02", s, pool)
	for object := range blocksInStore(t, s) {
		two.Heard(object, netip.MustParsePrefix(object), "node01")
	}
	s.Restore(backup)
	mustAllocate(t, two, request("b"))
	if _, err := two.Allocate(t.Context(), request("c")); !errors.Is(err, ErrExhausted) {
		t.Errorf("took the block of another node: %v", err)
	}
	lost, err := one.ConfirmBlocks(t.Context())
	if err != nil || len(lost) > 0 || len(blocksInStore(t, s)) != 2 {
		t.Errorf("claimed again: lost %v, %v", lost, err)
	}

	// What nobody claims again is free when the store has told so.
	s.Restore(backup)
	for _, b := range one.Blocks() {
		two.HeardGone(b.Prefix.String())
	}
	mustAllocate(t, two, request("c"))
	lost, err = one.ConfirmBlocks(t.Context())
	if err != nil || len(lost) != 1 {
		t.Fatalf("lost %v, %v", lost, err)
	}
	if strays := one.Strays(); len(strays) != 1 || strays[0].Pod != "a" {
		t.Errorf("strays %v", strays)
	}
	mustRelease(t, one, "a")
	if strays := one.Strays(); len(strays) != 0 {
		t.Errorf("strays %v", strays)
	}
}

// TestReconcileWithoutRoom has a pod go while the journal can't be written: the
// node starts all the same, and the address stays taken until it is released.
func TestReconcileWithoutRoom(t *testing.T) {
	a := newAllocator(t, "node01", memory.New(), ipPool("p", "10.244.0.0/30", 30))
	addrs := mustAllocate(t, a, request("a"))
	j := a.journal.(*journal)
	if err := j.file.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := a.Reconcile(nil)
	if all := a.List(); err != nil || len(r.Freed) != 0 || len(all) != 1 || !all[0].Leaving {
		t.Fatalf("%+v, %v; %+v", r, err, all)
	}
	if _, ok, err := a.Release(request("a").ID); ok || !errors.Is(err, ErrJournal) {
		t.Errorf("released: %v, %v", ok, err)
	}
	if j.file, err = os.OpenFile(j.path, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	mustRelease(t, a, "a")
	mustAllocate(t, a, request("b", addrs[0].String()))
}

// TestLeaveWithoutRoom: a pod that is taken down while the journal can't be written
// is leaving to this process.
func TestLeaveWithoutRoom(t *testing.T) {
	a := newAllocator(t, "node01", memory.New(), ipPool("p", "10.244.0.0/30", 30))
	mustAllocate(t, a, request("a"))
	if err := a.journal.(*journal).file.Close(); err != nil {
		t.Fatal(err)
	}
	if al, ok, err := a.Leave(request("a").ID); !al.Leaving || !ok || !errors.Is(err, ErrJournal) {
		t.Errorf("leave: %+v, %t, %v", al, ok, err)
	}
	if all := a.List(); len(all) != 1 || !all[0].Leaving {
		t.Errorf("the pod that leaves: %+v", all)
	}
}

// TestLostJournalClaimsNothing: a node whose journal was lost takes up the blocks
// that the store says are the node's before it claims others, for addresses ahead of
// need and for a pod alike, also where ConfirmBlocks comes later.
func TestLostJournalClaimsNothing(t *testing.T) {
	s := memory.New()
	pool := ipPool("p", "10.244.0.0/24", 28)
	old := newAllocator(t, "node01", s, pool)
	addrs := mustAllocate(t, old, request("a"))
	before := blocksInStore(t, s)
	live := []Interface{{HostInterface: "tw-a", ID: request("a").ID, Addresses: addrs}}
	for what, claim := range map[string]func(*Allocator) error{
		"ahead": func(a *Allocator) error { return a.prepare(t.Context()) },
		"for a pod": func(a *Allocator) error {
			_, err := a.Allocate(t.Context(), request("b"))
			return err
		},
	} {
		a := open(t, filepath.Join(t.TempDir(), "ipam.journal"), "node01", s, pool)
		if _, err := a.Reconcile(live); err != nil {
			t.Fatal(err)
		}
		for object := range before {
			a.Heard(object, netip.MustParsePrefix(object), "node01")
		}
		if err := claim(a); err != nil {
			t.Fatal(err)
		}
		if lost, err := a.ConfirmBlocks(t.Context()); err != nil || len(lost) > 0 {
			t.Fatal(lost, err)
		}
		if after := blocksInStore(t, s); !maps.Equal(before, after) || len(a.Blocks()) != len(before) {
			t.Errorf("%s: the store has %v, want %v; the journal %v", what, after, before, a.Blocks())
		}
	}
}
