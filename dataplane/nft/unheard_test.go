package nft

import (
	"testing"

	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// TestBigLoadMissesNobody: notifications are off while much is written. What
// somebody else does meanwhile is found out by the generations, and mended.
func TestBigLoadMissesNobody(t *testing.T) {
	ns := testnet.New(t)
	k, p := open(t, ns), bigPlan(100)
	apply(t, k, p)
	other := open(t, ns)
	members := k.have.sets["members"].definition
	before, err := other.socket.generation()
	if err != nil {
		t.Fatal(err)
	}
	for i := range many {
		addMember(p, i)
	}
	steal := func() {
		theft := &change{kind: kindElement, stage: stageDropMembers, name: "members", key: plan.KeyOf(nth(0)), had: true, definition: &members}
		if refusals, err := other.socket.commit(newBatch([]*change{theft}).messages); err != nil || len(refusals) > 0 {
			t.Errorf("remove an element: %v %v", refusals, err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for now := before; now == before; { // until the first part is written
			if now, err = other.socket.generation(); err != nil {
				t.Error(err)
				return
			}
		}
		steal()
	}()
	apply(t, k, p)
	now, err := k.socket.generation()
	<-done
	if after, _ := k.socket.generation(); err != nil || after != now {
		t.Logf("the other's transaction came after all of ours: nothing is shown by this run (%v)", err)
		return
	}
	settled(t, k, p)

	for err == nil { // what was told before
		_, err = k.events.receive()
	}
	steal()
	if _, err := k.events.receive(); err != nil {
		t.Errorf("nothing is told after the big load: %v", err)
	}
}
