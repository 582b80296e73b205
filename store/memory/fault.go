package memory

import (
	"fmt"
	"maps"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// Compact forgets all history: a watch from an older revision gets
// ErrCompacted.
func (s *Store) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range api.Kinds() {
		s.shelf(kind).forget(s.revision)
	}
}

// BreakWatches ends every watch with ErrUnavailable, as a lost connection does.
func (s *Store) BreakWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.breakAll()
}

func (s *Store) breakAll() {
	close(s.broken)
	s.broken = make(chan struct{})
}

// SetDown makes every call fail with ErrUnavailable and breaks the watches, or
// makes the store work again.
func (s *Store) SetDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage = nil
	if down {
		s.outage = fmt.Errorf("%w: outage", store.ErrUnavailable)
		s.breakAll()
	}
}

// Corrupt puts a value that is no object under the key.
func (s *Store) Corrupt(kind *api.Kind, key api.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shelf(kind)
	delete(sh.objects, key)
	sh.unreadable[key] = fmt.Errorf("not a %s", kind.Name)
	s.revision++
}

// Backup is the content of a store at one moment.
type Backup struct {
	revision int64
	objects  map[*api.Kind]map[api.Key]api.Object
}

// Backup copies what the store holds; the zero Backup is an empty store.
func (s *Store) Backup() Backup {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := Backup{s.revision, map[*api.Kind]map[api.Key]api.Object{}}
	for kind, sh := range s.kinds {
		b.objects[kind] = maps.Clone(sh.objects)
	}
	return b
}

// Restore goes back to the backup: revisions count on from there, history is
// empty and watches break.
func (s *Store) Restore(b Backup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	s.revision = max(b.revision, 1)
	clear(s.kinds)
	for kind, objects := range b.objects {
		s.shelf(kind).objects = maps.Clone(objects)
	}
	s.breakAll()
}
