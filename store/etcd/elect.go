package etcd

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/twill-net/twill/store"
)

const (
	leaseTTL      = 10 // seconds that a leader that vanished keeps others waiting
	resignTimeout = 2 * time.Second
)

// Campaign implements store.Elector with a lease: leadership is lost when the
// lease could not be renewed in time.
func (s *Store) Campaign(ctx context.Context, name string) (<-chan struct{}, func(), error) {
	lost, resign, err := s.campaign(ctx, name)
	if err != nil {
		return nil, nil, fmt.Errorf("campaign for %s: %w", name, classify(ctx, err, nil))
	}
	return lost, resign, nil
}

func (s *Store) campaign(ctx context.Context, name string) (<-chan struct{}, func(), error) {
	session, err := s.session(ctx)
	if err != nil {
		return nil, nil, err
	}
	resign := sync.OnceFunc(func() { s.end(session) })
	stop := context.AfterFunc(ctx, session.Orphan)
	defer stop()
	// Waiting ends when the lease does: a candidate whose lease is gone would
	// wait for ever.
	host, _ := os.Hostname()
	err = concurrency.NewElection(session, electionRoot+name).Campaign(session.Ctx(), host)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		resign()
		return nil, nil, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return session.Done(), resign, nil
}

// session makes a lease in bounded time.
func (s *Store) session(ctx context.Context) (*concurrency.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	lease, err := client.Grant(ctx, leaseTTL)
	if err != nil {
		return nil, err
	}
	s.abandonedMu.Lock()
	defer s.abandonedMu.Unlock()
	for _, old := range s.abandoned {
		// Else we would wait for our own lease to run out, and a new etcd leader
		// gives each lease its whole life again. One that is gone is fine.
		_, _ = client.Revoke(ctx, old)
	}
	s.abandoned = nil
	return concurrency.NewSession(client, concurrency.WithLease(lease.ID), concurrency.WithTTL(leaseTTL))
}

// end gives up the lease, and with it what was won; where etcd can't be told
// now, the next campaign tells it, or the lease runs out.
func (s *Store) end(session *concurrency.Session) {
	session.Orphan()
	ctx, cancel := context.WithTimeout(context.Background(), resignTimeout)
	defer cancel()
	if _, err := session.Client().Revoke(ctx, session.Lease()); err != nil {
		s.abandonedMu.Lock()
		s.abandoned = append(s.abandoned, session.Lease())
		s.abandonedMu.Unlock()
	}
}
