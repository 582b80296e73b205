package ipam

import (
	"encoding/binary"
	"slices"
	"testing"
)

// TestLengthsAndPagesThatLie: what made bbolt ask for all memory, or go round in
// circles, is noticed.
func TestLengthsAndPagesThatLie(t *testing.T) {
	good := journalFile(t)
	read := func(data []byte) error {
		return readPages(data, func(string) func(k, v []byte) error {
			return func(k, v []byte) error { _, err := unseal(k, v); return err }
		})
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	const page = 4096
	lies, noticed := 0, 0
	try := func(lie func(bad []byte)) {
		bad := slices.Clone(good)
		lie(bad)
		lies++
		if read(bad) != nil {
			noticed++
		}
	}
	for at := 2 * page; at < len(good); at += page {
		count := int(u16(good[at+10:]))
		if u16(good[at+8:]) != pageLeaf || count == 0 {
			continue
		}
		for e := at + pageHeader; e < at+pageHeader+count*elementSize; e += elementSize {
			for _, field := range []int{4, 8, 12} { // position, length of the key, of the value
				for _, n := range []uint32{1 << 31, 1<<32 - 1, page} {
					try(func(bad []byte) { binary.NativeEndian.PutUint32(bad[e+field:], n) })
				}
			}
		}
		try(func(bad []byte) { // a branch whose first child is itself
			binary.NativeEndian.PutUint16(bad[at+8:], pageBranch)
			binary.NativeEndian.PutUint64(bad[at+pageHeader+8:], uint64(at/page))
		})
		try(func(bad []byte) { binary.NativeEndian.PutUint16(bad[at+10:], 1<<16-1) })
		try(func(bad []byte) { binary.NativeEndian.PutUint32(bad[at+12:], 1<<32-1) })
	}
	// Pages that are no longer part of the journal may say what they like.
	if lies < 20 || noticed < 20 {
		t.Errorf("%d of %d lies are noticed", noticed, lies)
	}
}
