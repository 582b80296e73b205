package memory

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, kind *api.Kind, revision string) (<-chan store.Event, func() error) {
	return store.Stream(ctx, kind, func(ch chan<- store.Event) error { return s.watch(ctx, kind, revision, ch) })
}

func (s *Store) watch(ctx context.Context, kind *api.Kind, revision string, ch chan<- store.Event) error {
	epoch, cursor, err := parsePosition(revision)
	if err != nil {
		return err
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	broken := s.broken
	s.mu.Unlock()

	pending := []store.Event{{Type: store.Bookmark, Revision: revision, Reached: uint64(cursor)}}
	for first := true; ; first = false {
		changes, written, err := s.changesAfter(kind, epoch, cursor)
		if err != nil {
			return err
		}
		if !first {
			pending = pending[:0]
		}
		for _, c := range changes {
			pending = append(pending, c.event)
			cursor = c.revision
		}
		for _, event := range pending {
			select {
			case ch <- event:
			case <-broken:
				return fmt.Errorf("%w: the stream broke", store.ErrUnavailable)
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-written:
		case <-broken:
			return fmt.Errorf("%w: the stream broke", store.ErrUnavailable)
		case <-ctx.Done():
			return nil
		}
	}
}

// changesAfter returns the kind's changes after the revision, and a channel
// that is closed at the next one.
func (s *Store) changesAfter(kind *api.Kind, epoch int, revision int64) ([]change, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shelf(kind)
	switch {
	case epoch != s.epoch || revision > s.revision:
		return nil, nil, store.ErrRestored
	case revision < sh.compacted:
		return nil, nil, store.ErrCompacted
	}
	return slices.Clone(sh.history[sh.after(revision):]), sh.written, nil
}

func parsePosition(text string) (epoch int, revision int64, err error) {
	e, r, ok := strings.Cut(text, ".")
	if ok {
		epoch, err = strconv.Atoi(e)
	}
	if ok && err == nil {
		revision, err = strconv.ParseInt(r, 10, 64)
	}
	if !ok || err != nil {
		return 0, 0, fmt.Errorf("%q is not a revision of a list or an event", text)
	}
	return epoch, revision, nil
}
