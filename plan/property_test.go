package plan_test

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/plan/plantest"
)

var (
	seed  = flag.Uint64("seed", 0, "begin the property tests with this seed instead of a random one")
	cases = flag.Int("cases", 500, "how many random cases each property test tries")
)

// changesInAWorld is after how many changes a world is taken back and another
// one begins.
const changesInAWorld = 50

// TestPlanDependsOnIntentAlone changes random clusters step by step. After each
// case, which is a change or a few at once, the plan is what a planner makes that
// is told the same intent in another order, with things told twice, in another
// form first, or taken back in between. When all is taken back, nothing is left.
func TestPlanDependsOnIntentAlone(t *testing.T) {
	first := cmp.Or(*seed, rand.Uint64())
	done := 0
	for world := uint64(0); done < *cases; world++ {
		seed := first + world
		w := plantest.New(seed, plantest.Everything)
		pl := plantest.Planner()
		empty := describe(pl)
		for change := 0; change < changesInAWorld && done < *cases; change++ {
			var told []plantest.Event
			for range 1 + w.IntN(4) {
				e := w.Change()
				told = append(told, e)
				e.Tell(pl)
				if w.IntN(8) == 0 {
					pl.Flush()
				}
			}
			other := plantest.Planner()
			for _, e := range w.Detours() {
				e.Tell(other)
				if w.IntN(16) == 0 {
					other.Flush()
				}
			}
			done++
			if got, want := describe(pl), describe(other); got != want {
				t.Fatalf("-seed %d, change %d (%v): the plan depends on the way (-otherwise +step by step):\n%s", seed, change, told, gocmp.Diff(want, got))
			}
		}
		for _, e := range w.Undo() {
			e.Tell(pl)
		}
		if got := describe(pl); got != empty {
			t.Fatalf("-seed %d: all is taken back, and this is left:\n%s", seed, gocmp.Diff(empty, got))
		}
	}
	t.Logf("%d cases, -seed %d", done, first)
}

// describe is all that a planner says.
func describe(pl *plan.Planner) string {
	p := pl.Flush()
	udp := map[plan.Frontend]plan.Backends{}
	for f, b := range p.UDPFrontends.All() {
		udp[f] = b
	}
	return fmt.Sprintf("%s\nelements %d\nudp %v\nmtu %d\nreceives %v\nproblems %+v\n",
		p, p.Elements.Len(), udp, pl.PodMTU(), pl.Receives(), pl.Problems())
}
