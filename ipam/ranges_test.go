package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/twill-net/twill/store/memory"
)

// TestRangesOfTheNode: where the cluster has given the node ranges, its blocks lie
// in them, whatever else is free.
func TestRangesOfTheNode(t *testing.T) {
	ranges := func(only bool, texts ...string) Ranges {
		r := Ranges{Only: only}
		for _, text := range texts {
			r.Prefixes = append(r.Prefixes, netip.MustParsePrefix(text))
		}
		return r
	}
	four, six := ipPool("four", "10.244.0.0/16", 0), ipPool("six", "fd00:244::/112", 0)
	for _, c := range []struct {
		meaning string
		ranges  Ranges
		within  []string // of each address; nil: none is given
	}{
		{"none", Ranges{}, []string{"10.244.0.0/16", "fd00:244::/112"}},
		{"of both families", ranges(true, "10.244.7.0/24", "fd00:244::700/120"), []string{"10.244.7.0/24", "fd00:244::700/120"}},
		{"of one, pools for the other", ranges(false, "10.244.7.0/24"), []string{"10.244.7.0/24", "fd00:244::/112"}},
		{"of one, and no others", ranges(true, "10.244.7.0/24"), []string{"10.244.7.0/24"}},
		{"smaller than a block", ranges(true, "10.244.7.32/28"), []string{"10.244.7.32/28"}},
		{"larger than the pool", ranges(true, "10.0.0.0/8"), []string{"10.244.0.0/16"}},
		{"outside, pools will do", ranges(false, "10.32.1.0/24"), []string{"10.244.0.0/16", "fd00:244::/112"}},
		{"outside, and no others", ranges(true, "10.32.1.0/24"), nil},
	} {
		t.Run(c.meaning, func(t *testing.T) {
			s := memory.New()
			a := newAllocator(t, "node01", s, four, six)
			a.SetNode(nil, c.ranges)
			if c.within == nil {
				if _, err := a.Allocate(t.Context(), request("a")); !errors.Is(err, ErrNoPool) {
					t.Errorf("%v, want ErrNoPool", err)
				}
				return
			}
			got := mustAllocate(t, a, request("a"))
			if len(got) != len(c.within) {
				t.Fatalf("got %v, want addresses of %v", got, c.within)
			}
			for i, addr := range got {
				if !netip.MustParsePrefix(c.within[i]).Contains(addr) {
					t.Errorf("%s is not of %s", addr, c.within[i])
				}
			}
			for block := range blocksInStore(t, s) {
				inside := false
				for _, within := range c.within {
					w := netip.MustParsePrefix(within)
					b := netip.MustParsePrefix(block)
					inside = inside || w.Contains(b.Addr()) && b.Bits() >= w.Bits()
				}
				if !inside {
					t.Errorf("block %s is in none of %v", block, c.within)
				}
			}
		})
	}
	t.Run("full", func(t *testing.T) {
		a := newAllocator(t, "node01", memory.New(), four)
		a.SetNode(nil, ranges(false, "10.244.7.0/29"))
		for i := range 6 { // the first and the last are reserved
			mustAllocate(t, a, request(fmt.Sprint(i)))
		}
		if _, err := a.Allocate(t.Context(), request("one more")); !errors.Is(err, ErrExhausted) {
			t.Errorf("%v, want ErrExhausted", err)
		}
	})
}
