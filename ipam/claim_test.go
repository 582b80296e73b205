package ipam

import (
	"testing"
	"testing/synctest"

	"github.com/twill-net/twill/store/memory"
)

// TestPrepareTakesAsManyBlocksAsItNeeds has blocks that are smaller than what is
// to be free.
func TestPrepareTakesAsManyBlocksAsItNeeds(t *testing.T) {
	s := memory.New()
	a := newAllocator(t, "node01", s, ipPool("p", "10.244.0.0/26", 30))
	if err := a.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	free := 0
	for _, b := range a.Blocks() {
		free += b.Free
	}
	if n := len(blocksInStore(t, s)); free < a.ahead || n != len(a.Blocks()) || n > 3 {
		t.Errorf("%d addresses are free in %d blocks, want %d", free, n, a.ahead)
	}
}

// TestClaimOfOneFamilyIsNotRepeated: an attachment that waits for its turn to claim
// an IPv4 block, which Keep claims meanwhile, and finds that an IPv6 block is
// missing, claims no second IPv4 block.
func TestClaimOfOneFamilyIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAllocator(t, "node01", memory.New(), ipPool("four", "10.244.0.0/16", 26), ipPool("six", "fd00:244::/56", 122))
		if err := a.beginClaim(t.Context()); err != nil { // Keep has its turn
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { _, err := a.Allocate(t.Context(), request("web")); done <- err }()
		synctest.Wait()
		prefix, err := a.claimer.Claim(t.Context(), a.selected[:1], nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.own(t.Context(), prefix); err != nil {
			t.Fatal(err)
		}
		a.endClaim()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := a.Blocks(); len(got) != 2 {
			t.Errorf("blocks %v, want one of each family", got)
		}
	})
}
