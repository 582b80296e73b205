package agent

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

// renewals counts the writes of an agent's lease, and keeps what the last said.
type renewals struct {
	mu     sync.Mutex
	writes int
	last   api.Programmed
}

// seen is what was written so far.
func (r *renewals) seen() (writes int, last api.Programmed) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.writes, r.last
}

func countRenewals(t *testing.T, s store.Store) *renewals {
	t.Helper()
	list, err := s.List(t.Context(), api.LeaseKind, "")
	if err != nil {
		t.Fatal(err)
	}
	r := &renewals{}
	events, _ := s.Watch(t.Context(), api.LeaseKind, list.Revision)
	go func() {
		for e := range events {
			if e.Type != store.Put {
				continue
			}
			said, err := api.LeaseProgrammed(e.Object)
			if err != nil {
				t.Error(err)
			}
			r.mu.Lock()
			r.writes, r.last = r.writes+1, said
			r.mu.Unlock()
		}
	}()
	return r
}

// TestProgrammedIsPublishedAtABoundedRate: at rest the lease is renewed as often as
// without it, a change of a policy is published at once, and a flood of them at a
// rate that falls with the size of the cluster.
func TestProgrammedIsPublishedAtABoundedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		a := leaseAgent(s, "host_boot.1")
		r := countRenewals(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = a.renewLease(ctx) }()
		writes := func(d time.Duration, during func()) int {
			before, _ := r.seen()
			if during != nil {
				during()
			}
			time.Sleep(d)
			now, _ := r.seen()
			return now - before
		}
		if n := writes(time.Minute, nil); n != 12 {
			t.Errorf("%d writes in a minute at rest, want 12", n)
		}
		version := uint64(10)
		change := func(kind *api.Kind) {
			version++
			a.progress.received[kind] = version
			a.progress.applied()
		}
		time.Sleep(time.Second) // since the last renewal
		published := func(kind *api.Kind) uint64 {
			_, last := r.seen()
			return last.Version(kind)
		}
		if n := writes(50*time.Millisecond, func() { change(api.NetworkPolicyKind) }); n != 1 || published(api.NetworkPolicyKind) != 11 {
			t.Errorf("%d writes after a change of a policy, the last with %d", n, published(api.NetworkPolicyKind))
		}
		time.Sleep(time.Second)
		if n := writes(50*time.Millisecond, func() { change(api.WorkloadEndpointKind) }); n != 0 {
			t.Errorf("%d writes at once after a pod came", n)
		}
		time.Sleep(leaseDuration / 3)
		if got := published(api.WorkloadEndpointKind); got != version {
			t.Errorf("the pod of revision %d is published as %d with the next renewal", version, got)
		}
		flood := func() {
			for range 1000 {
				change(api.NetworkPolicyKind)
				time.Sleep(10 * time.Millisecond)
			}
		}
		if n := writes(time.Second, flood); n < 45 || n > 55 {
			t.Errorf("%d writes in 10 s of changes, want about 50", n)
		}
		if got := published(api.NetworkPolicyKind); got != version {
			t.Errorf("the last change is %d, published %d", version, got)
		}
		a.progress.nodes.Store(1000)
		if n := writes(0, flood); n > 4 {
			t.Errorf("%d writes in 10 s of changes on one of 1000 nodes, want no more than at rest", n)
		}
	})
}
