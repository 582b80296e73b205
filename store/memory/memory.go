// Package memory is a store that lives and dies with its process: for tests and
// simulations. It has the semantics of the real ones, revisions, history and
// compaction included, and can be made to fail as they do.
//
// It never touches a disk or a network.
package memory

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// historyLimit is how many changes of a kind are remembered for watches.
const historyLimit = 1 << 13

// Store implements store.Store and store.Elector.
type Store struct {
	mu       sync.Mutex
	epoch    int // grows with each Restore
	revision int64
	kinds    map[*api.Kind]*shelf
	outage   error         // what every call returns, if not nil
	broken   chan struct{} // closed to end all watches
	closed   bool
	leaders  map[string]*leader
}

// shelf holds one kind.
type shelf struct {
	objects    map[api.Key]api.Object // shared, never changed
	unreadable map[api.Key]error
	history    []change // by revision
	compacted  int64    // the newest revision that is no longer in history
	written    chan struct{}
}

type change struct {
	revision int64
	event    store.Event
}

// New returns an empty store.
func New() *Store {
	return &Store{
		revision: 1,
		kinds:    map[*api.Kind]*shelf{},
		broken:   make(chan struct{}),
		leaders:  map[string]*leader{},
	}
}

// enter locks the store for one call; unless it fails, the caller unlocks.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if err := s.refusal(); err != nil {
		s.mu.Unlock()
		return err
	}
	return nil
}

func (s *Store) refusal() error {
	if s.closed {
		return fmt.Errorf("%w: it was closed", store.ErrUnavailable)
	}
	return s.outage
}

func (s *Store) shelf(kind *api.Kind) *shelf {
	sh := s.kinds[kind]
	if sh == nil {
		sh = &shelf{
			objects:    map[api.Key]api.Object{},
			unreadable: map[api.Key]error{},
			written:    make(chan struct{}),
		}
		s.kinds[kind] = sh
	}
	return sh
}

func (s *Store) position(revision int64) string { return fmt.Sprintf("%d.%d", s.epoch, revision) }

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, kind *api.Kind, key api.Key) (api.Object, error) {
	if err := store.CheckKey(kind, key); err != nil {
		return nil, err
	}
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("get %s %s: %w", kind.Name, key, err)
	}
	defer s.mu.Unlock()
	sh := s.shelf(kind)
	if err := sh.unreadable[key]; err != nil {
		return nil, fmt.Errorf("get %s %s: unreadable: %w", kind.Name, key, err)
	}
	obj := sh.objects[key]
	if obj == nil {
		return nil, fmt.Errorf("get %s %s: %w", kind.Name, key, store.ErrNotFound)
	}
	return obj.DeepCopyObject().(api.Object), nil
}

// List implements store.Store; items are ordered by key.
func (s *Store) List(ctx context.Context, kind *api.Kind, namespace string) (store.List, error) {
	if err := store.CheckNamespace(kind, namespace); err != nil {
		return store.List{}, err
	}
	if err := s.enter(ctx); err != nil {
		return store.List{}, fmt.Errorf("list %s: %w", kind.Plural, err)
	}
	defer s.mu.Unlock()
	list := store.List{Revision: s.position(s.revision), Reached: uint64(s.revision)}
	sh := s.shelf(kind)
	for key, obj := range sh.objects {
		if namespace == "" || key.Namespace == namespace {
			list.Items = append(list.Items, obj)
		}
	}
	slices.SortFunc(list.Items, func(a, b api.Object) int {
		return compareKeys(api.KeyOf(a), api.KeyOf(b))
	})
	for key := range sh.unreadable {
		if namespace == "" || key.Namespace == namespace {
			list.Unreadable = append(list.Unreadable, key)
		}
	}
	slices.SortFunc(list.Unreadable, compareKeys)
	return list, nil
}

func compareKeys(a, b api.Key) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, obj api.Object) (api.Object, error) {
	kind, key, err := store.CheckObject(obj)
	if err != nil {
		return nil, err
	}
	value, err := store.EncodeNew(kind, obj, time.Now())
	if err != nil {
		return nil, err
	}
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("create %s %s: %w", kind.Name, key, err)
	}
	defer s.mu.Unlock()
	sh := s.shelf(kind)
	if sh.objects[key] != nil || sh.unreadable[key] != nil {
		return nil, fmt.Errorf("create %s %s: %w", kind.Name, key, store.ErrExists)
	}
	return s.put(kind, key, value)
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, obj api.Object) (api.Object, error) {
	kind, key, err := store.CheckObject(obj)
	if err != nil {
		return nil, err
	}
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("update %s %s: %w", kind.Name, key, err)
	}
	defer s.mu.Unlock()
	sh := s.shelf(kind)
	old := sh.objects[key]
	switch {
	case sh.unreadable[key] != nil:
		return nil, fmt.Errorf("update %s %s: %w", kind.Name, key, store.ErrConflict)
	case old == nil:
		return nil, fmt.Errorf("update %s %s: %w", kind.Name, key, store.ErrNotFound)
	case old.GetResourceVersion() != obj.GetResourceVersion():
		return nil, fmt.Errorf("update %s %s: %w", kind.Name, key, store.ErrConflict)
	}
	value, changed, err := store.EncodeNext(kind, old, obj)
	if err != nil {
		return nil, err
	}
	if !changed {
		return old.DeepCopyObject().(api.Object), nil
	}
	return s.put(kind, key, value)
}

// put stores a value that the caller has checked, with the lock held.
func (s *Store) put(kind *api.Kind, key api.Key, value []byte) (api.Object, error) {
	obj, err := store.Decode(kind, key, value, strconv.FormatInt(s.revision+1, 10))
	if err != nil {
		return nil, fmt.Errorf("store %s %s: %w", kind.Name, key, err)
	}
	sh := s.shelf(kind)
	delete(sh.unreadable, key)
	sh.objects[key] = obj
	s.record(sh, store.Put, obj)
	return obj.DeepCopyObject().(api.Object), nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, kind *api.Kind, key api.Key, resourceVersion string) error {
	if err := store.CheckKey(kind, key); err != nil {
		return err
	}
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("delete %s %s: %w", kind.Name, key, err)
	}
	defer s.mu.Unlock()
	sh := s.shelf(kind)
	obj := sh.objects[key]
	if obj == nil {
		if sh.unreadable[key] == nil {
			return fmt.Errorf("delete %s %s: %w", kind.Name, key, store.ErrNotFound)
		}
		obj = kind.New()
		obj.SetNamespace(key.Namespace)
		obj.SetName(key.Name)
	}
	if resourceVersion != "" && resourceVersion != obj.GetResourceVersion() {
		return fmt.Errorf("delete %s %s: %w", kind.Name, key, store.ErrConflict)
	}
	delete(sh.objects, key)
	delete(sh.unreadable, key)
	last := obj.DeepCopyObject().(api.Object)
	last.SetResourceVersion(strconv.FormatInt(s.revision+1, 10))
	s.record(sh, store.Deleted, last)
	return nil
}

// record makes the change the newest revision and wakes the kind's watches.
func (s *Store) record(sh *shelf, what store.EventType, obj api.Object) {
	s.revision++
	sh.history = append(sh.history, change{s.revision, store.Event{Type: what, Object: obj, Revision: s.position(s.revision), Reached: uint64(s.revision)}})
	if excess := len(sh.history) - historyLimit; excess > historyLimit/4 {
		sh.forget(sh.history[excess-1].revision)
	}
	close(sh.written)
	sh.written = make(chan struct{})
}

// forget drops the history up to and with the revision.
func (sh *shelf) forget(revision int64) {
	i := sh.after(revision)
	sh.history = slices.Clone(sh.history[i:])
	sh.compacted = max(sh.compacted, revision)
}

// after is the index of the first change after the revision.
func (sh *shelf) after(revision int64) int {
	i, _ := slices.BinarySearchFunc(sh.history, revision+1, func(c change, r int64) int {
		return int(c.revision - r)
	})
	return i
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.breakAll()
	}
	return nil
}
