package nft

import (
	"testing"

	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// TestGrowingSetIsReadWhole reads a set while the kernel makes the room for what was
// added just before.
func TestGrowingSetIsReadWhole(t *testing.T) {
	ns := testnet.New(t)
	k, other := open(t, ns), open(t, ns)
	p := bigPlan(100)
	apply(t, k, p)
	d := k.have.sets["members"].definition
	for n := 100; n < 50_000; n += n {
		for i := range n {
			addMember(p, i)
		}
		apply(t, k, p)
		want := p.Elements.LenOf("members")
		got, err := other.socket.elements(plan.NFTable, "members", d)
		if err != nil || len(got) != want {
			t.Errorf("%d elements are read (%v), %d are there", len(got), err, want)
		}
	}
}
