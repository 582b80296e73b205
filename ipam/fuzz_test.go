package ipam

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"
)

// twoPods is the journal of a node with two pods, after a third was there.
func twoPods(t testing.TB) (head, changes []byte) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	first := Allocation{ID: ID{"0123456789abcdef", "eth0"}, Namespace: "a", Pod: "b", HostInterface: "tw-1", NetNS: "/run/netns/x", Addresses: []netip.Addr{a, b}, Extra: []byte("{}")}
	var lines [][]byte
	for _, value := range []any{
		snapshot{Format: format, Boot: "boot", Blocks: []netip.Prefix{netip.PrefixFrom(a, 26).Masked()}, Allocations: []Allocation{first}},
		change{NewBlocks: []netip.Prefix{netip.PrefixFrom(b, 122).Masked()}},
		change{Put: []Allocation{{ID: ID{"c", "eth1"}, Addresses: []netip.Addr{a.Next()}}}},
		change{Put: []Allocation{{ID: ID{"d", "eth0"}, Addresses: []netip.Addr{a.Next().Next(), b.Next()}}}},
		change{Drop: []ID{{"d", "eth0"}}},
	} {
		line, err := seal(value)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	for _, line := range lines[1:] {
		changes = append(changes, line...)
	}
	return lines[0], changes
}

// FuzzJournal reads what may be anything: it is a journal, or corrupt, and never
// the end of the process.
func FuzzJournal(f *testing.F) {
	head, changes := twoPods(f)
	good := append(head, changes...)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("SQLite format 3\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) { parse(t, text) })
}

// FuzzLine puts JSON with a right checksum into a journal, as another version
// might: it is read or the journal is corrupt, and what was read can be written
// again.
func FuzzLine(f *testing.F) {
	f.Add(`{"Format":1,"Boot":"x"}`, `{}`)
	f.Add(`{"Format":2}`, `{"NewBlocks":["10.0.0.0/26"]}`)
	f.Add(`{"Format":1,"Blocks":["10.0.0.0/26"],"Freed":["10.0.0.1"]}`, `{"OldBlocks":["10.0.0.0/26"]}`)
	f.Add(`{"Format":1,"Allocations":[{"ContainerID":"c","IfName":"eth0","Addresses":["10.0.0.1","fd00::1"],"Extra":"e30="}]}`, `{"Drop":[{"ContainerID":"c","IfName":"eth0"}]}`)
	head, changes := twoPods(f)
	f.Fuzz(func(t *testing.T, first, next string) {
		sealed := func(text string) []byte {
			line, err := seal(json.RawMessage(text))
			if err != nil {
				t.Skip("no JSON")
			}
			return line
		}
		parse(t, append(sealed(first), sealed(next)...))
		parse(t, append(append(append([]byte{}, head...), changes...), sealed(next)...))
	})
}

// parse parses a journal; what it reads is written to a fresh journal, as each
// start does, and read again.
func parse(t *testing.T, text []byte) {
	t.Helper()
	for _, boot := range []string{"boot", "another"} {
		c, size, err := parseJournal(text, boot)
		if err != nil {
			if !errors.Is(err, errCorrupt) {
				t.Errorf("%v: it is not said to be corrupt", err)
			}
			continue
		}
		if size <= 0 || size > int64(len(text)) {
			t.Errorf("%d of %d bytes", size, len(text))
		}
		line, err := seal(c.snapshot())
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := parseJournal(line, c.boot)
		if err != nil {
			t.Fatalf("%s, read again: %v", line, err)
		}
		if lineAgain, err := seal(again.snapshot()); err != nil || string(lineAgain) != string(line) {
			t.Errorf("%s, read and written again: %s, %v", line, lineAgain, err)
		}
	}
}
