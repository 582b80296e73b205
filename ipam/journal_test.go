package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/store/memory"
)

// TestJournalIsHeldByOneProcess shows that two agents never write the same journal.
func TestJournalIsHeldByOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.journal")
	a := open(t, path, "node01", memory.New())
	if _, err := Open(path, "node01", Options{Store: memory.New()}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second agent: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path, "node01", memory.New())
}

// TestBrokenLine breaks each line of a journal in turn. In the boot that wrote it
// no line breaks by itself, but for one that was not written whole; after a power
// failure what was written before it counts.
func TestBrokenLine(t *testing.T) {
	head, changes := twoPods(t)
	good := string(head) + string(changes)
	lines := strings.SplitAfter(strings.TrimSuffix(good, "\n"), "\n")
	for n := range lines {
		broken := slices.Clone(lines)
		broken[n] = strings.Replace(broken[n], "0", "1", 1)
		text := strings.Join(broken, "") + "\n"
		if _, _, err := parseJournal([]byte(text), "boot"); !errors.Is(err, errCorrupt) {
			t.Errorf("line %d of the same boot: %v", n, err)
		}
		_, size, err := parseJournal([]byte(text), "another")
		if n == 0 && !errors.Is(err, errCorrupt) {
			t.Errorf("the first line: %v", err)
		}
		if want := len(strings.Join(lines[:n], "")); n > 0 && (err != nil || size != int64(want)) {
			t.Errorf("line %d after a boot: %d bytes, %v; want %d", n, size, err, want)
		}
	}
	for cut := len(head); cut < len(good); cut++ {
		_, size, err := parseJournal([]byte(good[:cut]), "boot")
		if want := strings.LastIndex(good[:cut], "\n") + 1; err != nil || size != int64(want) {
			t.Fatalf("the first %d bytes: %d bytes, %v; want %d", cut, size, err, want)
		}
	}
}

// TestJournalOfImpossibleThings has lines that are whole, and say what can't be.
func TestJournalOfImpossibleThings(t *testing.T) {
	head, changes := twoPods(t)
	address := netip.MustParseAddr
	for what, c := range map[string]change{
		"an address that another pod has":    {Put: []Allocation{{ID: ID{"x", "eth0"}, Addresses: []netip.Addr{address("10.0.0.1")}}}},
		"an address twice":                   {Put: []Allocation{{ID: ID{"x", "eth0"}, Addresses: []netip.Addr{address("10.0.0.9"), address("10.0.0.9")}}}},
		"no address":                         {Put: []Allocation{{ID: ID{"x", "eth0"}, Addresses: []netip.Addr{{}}}}},
		"an address with a zone":             {Put: []Allocation{{ID: ID{"x", "eth0"}, Addresses: []netip.Addr{address("fe80::1%eth0")}}}},
		"a pod twice":                        {Put: []Allocation{{ID: ID{"x", "eth0"}}, {ID: ID{"x", "eth0"}}}},
		"the end of a pod that is not there": {Drop: []ID{{"x", "eth0"}}},
		"two ends of a pod":                  {Drop: []ID{{"c", "eth1"}, {"c", "eth1"}}},
		"a block in a block":                 {NewBlocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}},
		"a block with bits behind its mask":  {NewBlocks: []netip.Prefix{netip.MustParsePrefix("10.0.1.1/26")}},
		"the end of another's block":         {OldBlocks: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/26")}},
	} {
		line, err := seal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := parseJournal(slices.Concat(head, changes, line), "boot"); !errors.Is(err, errCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, head := range []string{`{"Format":2}`, `{}`, `[]`, `{"Format":1,"Freed":["10.0.0.1"]}`} {
		line, err := seal(json.RawMessage(head))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := parseJournal(line, "boot"); !errors.Is(err, errCorrupt) {
			t.Errorf("%s: %v", head, err)
		}
	}
}

// TestJournalStaysSmall has more pods come and go than a journal keeps lines of.
func TestJournalStaysSmall(t *testing.T) {
	path := filepath.Join(journalDir(t), "ipam.journal")
	a := open(t, path, "node01", memory.New(), ipPool("p", "10.0.0.0/24", 26))
	if _, err := a.Reconcile(nil); err != nil {
		t.Fatal(err)
	}
	mustAllocate(t, a, request("stays"))
	first, begun := a.journal.(*journal).limit, 0
	for i := 0; begun < 2; i++ {
		id, before := fmt.Sprint(i), a.journal.(*journal).size
		mustAllocate(t, a, request(id))
		mustRelease(t, a, id)
		if a.journal.(*journal).size < before {
			begun++
		}
		if info, err := os.Stat(path); err != nil || info.Size() > 2*first {
			t.Fatalf("after %d pods: %v bytes, %v", i, info.Size(), err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if list := open(t, path, "node01", memory.New()).List(); len(list) != 1 || list[0].ContainerID != "stays" {
		t.Errorf("allocations %v", list)
	}
}
