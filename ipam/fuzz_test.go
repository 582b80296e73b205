package ipam

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"
)

// journalFile is the journal of a node with two pods.
func journalFile(f testing.TB) []byte {
	path := filepath.Join(journalDir(f), "ipam.db")
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	j, err := createJournal(path, contents{
		boot: "boot", blocks: []netip.Prefix{netip.PrefixFrom(a, 26).Masked(), netip.PrefixFrom(b, 122).Masked()},
		allocations: []Allocation{
			{ID: ID{"0123456789abcdef", "eth0"}, Namespace: "a", Pod: "b", HostInterface: "tw-1", NetNS: "/run/netns/x", Addresses: []netip.Addr{a, b}, Extra: []byte("{}")},
			{ID: ID{"c", "eth1"}, Addresses: []netip.Addr{a.Next()}},
		},
		freed: []freed{{7, a.Next().Next()}},
	})
	if err != nil {
		f.Fatal(err)
	}
	if err := j.close(); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return text
}

// FuzzJournal reads a file that may be anything: it is a journal, or corrupt,
// and never the end of the process.
func FuzzJournal(f *testing.F) {
	good := journalFile(f)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("SQLite format 3\x00"))
	f.Add([]byte{})
	path := filepath.Join(journalDir(f), "ipam.db")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := readJournal(path)
		if err != nil && !errors.Is(err, errCorrupt) {
			t.Errorf("%v: it is not said to be corrupt", err)
		}
		if err == nil {
			rewrite(t, c)
		}
	})
}

// rewrite writes what was read to a fresh journal, as each start does, and
// expects it there.
func rewrite(t *testing.T, c contents) {
	t.Helper()
	path := filepath.Join(journalDir(t), "again.db")
	j, err := createJournal(path, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	again, err := readJournal(path)
	if err != nil || again.boot != c.boot || len(again.allocations) != len(c.allocations) || !slices.Equal(again.freed, c.freed) {
		t.Errorf("%+v, written and read: %+v, %v", c, again, err)
	}
}

// FuzzRecord puts a record with a right checksum into a journal, as another
// version might: it is read or the journal is corrupt, and what was read can be
// written again.
func FuzzRecord(f *testing.F) {
	f.Add(uint8(0), []byte("format"), []byte("1"))
	f.Add(uint8(0), []byte("format"), []byte("2"))
	f.Add(uint8(0), []byte("boot"), []byte("x"))
	f.Add(uint8(1), []byte("10.0.0.0/26"), []byte{})
	f.Add(uint8(2), []byte("c\x00eth0"), []byte(`{"ContainerID":"c","IfName":"eth0","Addresses":["10.0.0.1","fd00::1"],"Extra":"e30="}`))
	f.Add(uint8(3), binary.BigEndian.AppendUint64(nil, 7), netip.MustParseAddr("10.0.0.1").AsSlice())
	path := filepath.Join(journalDir(f), "ipam.db")
	good := journalFile(f)
	f.Fuzz(func(t *testing.T, bucket uint8, key, value []byte) {
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			return put(tx.Bucket(buckets[int(bucket)%len(buckets)]), key, value)
		})
		if err := errors.Join(err, db.Close()); err != nil {
			return // no key, or too long a one
		}
		c, err := readJournal(path)
		if err != nil && !errors.Is(err, errCorrupt) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v: it is not said to be corrupt", err)
		}
		if err == nil {
			rewrite(t, c)
		}
	})
}
