package memory

import (
	"context"
	"fmt"
	"sync"

	"github.com/twill-net/twill/store"
)

type leader struct {
	lost chan struct{} // closed when leadership ends, however it ends
}

// Campaign implements store.Elector.
func (s *Store) Campaign(ctx context.Context, name string) (<-chan struct{}, func(), error) {
	for {
		if err := s.enter(ctx); err != nil {
			return nil, nil, fmt.Errorf("campaign for %s: %w", name, err)
		}
		rival, broken := s.leaders[name], s.broken
		if rival == nil {
			l := &leader{make(chan struct{})}
			s.leaders[name] = l
			s.mu.Unlock()
			return l.lost, sync.OnceFunc(func() { s.end(name, l) }), nil
		}
		s.mu.Unlock()
		select {
		case <-rival.lost:
		case <-broken:
			return nil, nil, fmt.Errorf("campaign for %s: %w", name, store.ErrUnavailable)
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("campaign for %s: %w", name, ctx.Err())
		}
	}
}

// Depose ends the leadership, as an expired lease does.
func (s *Store) Depose(name string) {
	s.mu.Lock()
	l := s.leaders[name]
	s.mu.Unlock()
	if l != nil {
		s.end(name, l)
	}
}

func (s *Store) end(name string, l *leader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaders[name] == l {
		delete(s.leaders, name)
		close(l.lost)
	}
}
