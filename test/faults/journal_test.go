package faults

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// stateDir is where nodes keep their journals, a file system of its own in a lab.
const stateDir = "/var/lib/twill"

// TestDiskFull leaves no room for a node's journal: pods can't be attached, which
// is told, and those that are there go on, and go. An agent that is started
// meanwhile works on.
func TestDiskFull(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newScene(t, lab.Config{})
	const node = "node01"
	for i := range 3 {
		s.start(t, fmt.Sprint("goes-", i), node, "other")
	}
	e := s.underLoad(t, "no room for a node's journal", func() (time.Duration, string) {
		s.at(t, node, "mount -o remount,size=256k "+stateDir)
		s.at(t, node, "cat /dev/zero > "+stateDir+"/filler 2>/dev/null || true")
		var refused error
		for i := 0; refused == nil && i < 100; i++ {
			_, refused = s.run(fmt.Sprint("more-", i), node, "")
		}
		if refused == nil {
			t.Fatal("100 pods were attached with no room for the journal")
		}
		const want = "the journal of addresses can't be written: no space left on device: make room on the file system of " + stateDir + "/ipam.journal"
		if !strings.Contains(refused.Error(), want) {
			t.Errorf("refused: %v; want %s", refused, want)
		}
		s.settled(t, "JournalWriteFailed")
		s.stop(t, "goes-0")

		s.control(t, lab.Kill, node)
		killed := len(s.said(t, node))
		s.control(t, lab.Start, node)
		if n := s.writes(t, node); n != 0 {
			t.Errorf("the agent that was started with no room wrote %d objects", n)
		}
		if !strings.Contains(s.said(t, node)[killed:], "working on with the old one") {
			t.Error("there was room for a fresh journal")
		}
		s.stop(t, "goes-1", "goes-2")
		testlab.Eventually(t, patience, func() error { return s.podsDiffer(t) })
		s.expect(t, "client -> server-1 server-2", "stranger -> server-1 server-2")
		testlab.Eventually(t, patience, func() error {
			if _, err := s.run("again", node, ""); err != nil {
				return nil
			}
			if _, err := s.Remove(lab.RemoveRequest{Namespace: namespace, Names: []string{"again"}}); err != nil {
				return err
			}
			s.at(t, node, "cat /dev/zero >> "+stateDir+"/filler 2>/dev/null || true")
			return fmt.Errorf("there is room again")
		})

		began := time.Now()
		s.at(t, node, "rm "+stateDir+"/filler")
		s.start(t, "again", node, "other")
		took := time.Since(began)
		testlab.Eventually(t, patience, func() error {
			log := s.said(t, node)[killed:]
			if open := strings.Count(log, ": tried again until it is done") - strings.Count(log, ": done"); open != 0 {
				return fmt.Errorf("%d things are still to be done", open)
			}
			return nil
		})
		s.settled(t)
		return took, "a pod was attached"
	})
	e.nothingLost(t)
	s.asPlanned(t)
}

// damage is what becomes of a journal.
type damage struct {
	script     string
	unreadable bool // afterwards, which is told; the rest look like a new node's, or like a write cut short
}

var damages = []damage{
	{"truncate -s 0 FILE", true},
	{"head -c 20000 /dev/urandom > FILE", true},
	{"head -c $(stat -c %s FILE) /dev/zero > FILE", true},
	{`printf '\377' | dd of=FILE bs=1 seek=60 conv=notrunc 2>/dev/null`, true},
	{"dd if=/dev/zero of=FILE bs=1 seek=40 count=16 conv=notrunc 2>/dev/null", true},
	{"rm FILE", false},
	{"truncate -s -7 FILE", false},
	{"head -c 100000 /dev/zero >> FILE", false},
}

// TestJournalDamaged damages a node's journal in some of the ways, or all, while
// its agent does not run. Pods keep their addresses, and none is given out twice.
func TestJournalDamaged(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newScene(t, lab.Config{})
	const node = "node01"
	for i := range 3 {
		s.start(t, fmt.Sprint("goes-", i), node, "other")
	}
	s.stop(t, "goes-0", "goes-1") // their addresses are free again
	before := s.addresses(t)
	e := s.underLoad(t, "a node's journal damaged", func() (time.Duration, string) {
		var slowest time.Duration
		tried := slices.Clone(damages)
		if !*every {
			rand.Shuffle(len(tried), func(i, j int) { tried[i], tried[j] = tried[j], tried[i] })
			tried = tried[:3]
		}
		for i, d := range tried {
			s.control(t, lab.Kill, node)
			s.at(t, node, strings.ReplaceAll(d.script, "FILE", stateDir+"/ipam.journal"))
			began := time.Now()
			s.control(t, lab.Start, node)
			slowest = max(slowest, time.Since(began))
			// Until the agent has written its status, the store has what the one before
			// it said: not what is there counts, but what is to be there.
			var told []string
			if d.unreadable {
				told = []string{"JournalRebuilt"}
			}
			s.settled(t, told...)
			if n := s.writes(t, node); n != 0 {
				t.Errorf("%s: the agent wrote %d objects", d.script, n)
			}
			for j := range 3 {
				s.start(t, fmt.Sprintf("new-%d-%d", i, j), node, "other")
			}
			s.settled(t, told...) // no two pods have one address
			now := s.addresses(t)
			for name, was := range before {
				if now[name] != was {
					t.Errorf("%s: pod %s had %s and has %s", d.script, name, was, now[name])
				}
			}
			for j := range 3 {
				s.stop(t, fmt.Sprintf("new-%d-%d", i, j))
			}
		}
		return slowest, "the agent took pods on"
	})
	e.nothingLost(t)
	s.asPlanned(t)
}

// addresses are those that pods really have.
func (s *scene) addresses(t *testing.T) map[string]netip.Addr {
	t.Helper()
	found := map[string]netip.Addr{}
	for name := range s.pods {
		out, err := s.At(t.Context(), lab.Pod(namespace, name), "ip", "-o", "-4", "address", "show", "dev", "eth0")
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(out)
		prefix, err := netip.ParsePrefix(fields[3])
		if err != nil {
			t.Fatal(err)
		}
		found[name] = prefix.Addr()
	}
	return found
}
