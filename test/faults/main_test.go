// Package faults breaks things on a lab under a steady load, one fault after the
// other: what runs a node is killed, cut off, filled up and damaged. Each test
// counts the requests that were lost, none of which may be the fault's, measures
// how long it took until all was right again, and then has each agent say whether
// its kernel is what it must be. A table at the end tells all.
//
// It never changes what is under test to make a fault easier: what breaks is
// what breaks in the field.
package faults

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/twill-net/twill/lab/load"
	"github.com/twill-net/twill/test/testlab"
)

var (
	period = flag.Duration("for", 4*time.Second, "how long agents are killed in a loop")
	outage = flag.Duration("outage", 4*time.Second, "how long the store is away")
	every  = flag.Bool("every", false, "remove every object by hand, and not one of each kind; damage journals in every way")
)

// report is what each fault did, in the order in which they were tried.
var report ledger

func TestMain(m *testing.M) { testlab.Main(told{m}) }

// told runs the tests and prints the report.
type told struct{ *testing.M }

func (m told) Run() int {
	code := m.M.Run()
	report.print()
	return code
}

// entry is one line of the report.
type entry struct {
	fault            string
	results          []load.Result // of new connections, and of datagrams
	lasting          []load.Result // of each connection that was to last
	sent, lost, late int
	broken           int // of the connections that were to last
	slowest          time.Duration
	repair           time.Duration
	repaired         string // what had to be right again
}

type ledger struct {
	mu      sync.Mutex
	entries []entry
}

func (l *ledger) add(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
}

func (l *ledger) print() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.entries) == 0 {
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tREQUESTS\tLOST\tLATE\tSLOWEST\tBROKEN\tREPAIRED AFTER\tNAMELY")
	for _, e := range l.entries {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%d/%d\t%s\t%s\n", e.fault, e.sent, e.lost, e.late,
			e.slowest.Round(time.Millisecond), e.broken, len(e.lasting), e.repair.Round(time.Millisecond), e.repaired)
	}
	w.Flush()
}
