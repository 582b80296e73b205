package ipam

import (
	"testing"

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
