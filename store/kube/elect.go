package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

const (
	leaseDuration = 10 * time.Second // that a leader which vanished keeps others waiting
	renewDeadline = 7 * time.Second  // without a renewal a leader gives up, before others take over
	leasePeriod   = time.Second      // between renewals, and between looks at another's lease
	resignTimeout = 2 * time.Second
)

// Campaign implements store.Elector with a Lease in kube-system, in the way of
// client-go's leader election. That itself would bring the clients, types and
// informers of all of Kubernetes into each agent.
func (s *Store) Campaign(ctx context.Context, name string) (<-chan struct{}, func(), error) {
	host, _ := os.Hostname()
	c := &candidate{
		store: s, id: host + "_" + uuid.NewString(),
		key: api.Key{Namespace: metav1.NamespaceSystem, Name: "twill-" + name},
	}
	if err := c.wait(ctx); err != nil {
		return nil, nil, fmt.Errorf("campaign for %s: %w", name, err)
	}
	lost, done := make(chan struct{}), make(chan struct{})
	holding, stop := context.WithCancel(s.ctx)
	go func() {
		defer close(done)
		defer close(lost)
		c.hold(holding)
	}()
	resign := sync.OnceFunc(func() {
		stop()
		<-done
		c.release()
	})
	return lost, resign, nil
}

// candidate takes part in one election.
type candidate struct {
	store *Store
	id    string
	key   api.Key
	// What was seen of another's lease, and when. Clocks of machines differ:
	// what counts is how long a lease has not changed by our own.
	seen   string
	seenAt time.Time
}

// wait returns when the lease is ours. An outage is waited through.
func (c *candidate) wait(ctx context.Context) error {
	tick := time.NewTicker(leasePeriod)
	defer tick.Stop()
	for {
		ours, err := c.claim(ctx)
		switch {
		case ours:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
		case c.store.ctx.Err() != nil:
			return fmt.Errorf("%w: %w", store.ErrUnavailable, errClosed)
		case err != nil && !isTransient(err):
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		case <-c.store.ctx.Done():
		}
	}
}

func isTransient(err error) bool {
	for _, known := range []error{store.ErrUnavailable, store.ErrConflict, store.ErrExists, store.ErrNotFound} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// claim takes the lease if nobody has it, or renews it if we do.
func (c *candidate) claim(ctx context.Context) (ours bool, err error) {
	got, err := c.store.Get(ctx, api.LeaseKind, c.key)
	if errors.Is(err, store.ErrNotFound) {
		lease := api.LeaseKind.New().(*coordinationv1.Lease)
		lease.Namespace, lease.Name = c.key.Namespace, c.key.Name
		c.sign(lease)
		_, err = c.store.Create(ctx, lease)
		return err == nil, err
	}
	if err != nil {
		return false, err
	}
	lease := got.(*coordinationv1.Lease)
	holder := ""
	if lease.Spec.HolderIdentity != nil {
		holder = *lease.Spec.HolderIdentity
	}
	if lease.ResourceVersion != c.seen {
		c.seen, c.seenAt = lease.ResourceVersion, time.Now()
	}
	if holder != "" && holder != c.id && time.Since(c.seenAt) < leaseDuration {
		return false, nil
	}
	c.sign(lease)
	_, err = c.store.Update(ctx, lease)
	return err == nil, err
}

// sign makes the lease ours from now on.
func (c *candidate) sign(lease *coordinationv1.Lease) {
	now, seconds, changes := metav1.NowMicro(), int32(leaseDuration/time.Second), int32(0)
	spec := &lease.Spec
	if spec.HolderIdentity == nil || *spec.HolderIdentity != c.id {
		if spec.LeaseTransitions != nil {
			changes = *spec.LeaseTransitions + 1
		}
		spec.AcquireTime, spec.LeaseTransitions = &now, &changes
	}
	spec.HolderIdentity, spec.LeaseDurationSeconds, spec.RenewTime = &c.id, &seconds, &now
}

// hold renews the lease until that has failed for too long, somebody else has
// it, or ctx ends.
func (c *candidate) hold(ctx context.Context) {
	tick := time.NewTicker(leasePeriod)
	defer tick.Stop()
	renewed := time.Now()
	for time.Since(renewed) < renewDeadline {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		try, cancel := context.WithDeadline(ctx, renewed.Add(renewDeadline))
		start := time.Now()
		ours, err := c.claim(try)
		cancel()
		switch {
		case ours:
			renewed = start
		case err == nil:
			return // another's: ours had run out
		}
	}
}

// release leaves the lease to whoever is next; where the API server can't be
// told now, it runs out.
func (c *candidate) release() {
	ctx, cancel := context.WithTimeout(context.Background(), resignTimeout)
	defer cancel()
	got, err := c.store.Get(ctx, api.LeaseKind, c.key)
	if err != nil {
		return
	}
	lease := got.(*coordinationv1.Lease)
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != c.id {
		return
	}
	lease.Spec.HolderIdentity, lease.Spec.RenewTime = nil, nil
	_, _ = c.store.Update(ctx, lease)
}
