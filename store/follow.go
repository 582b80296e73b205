package store

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/twill-net/twill/api"
)

// How long Follow waits before it tries again: from the first to the last,
// doubling, less up to half of it at random, so that a thousand nodes don't
// come back at once.
const (
	followFirstDelay = 100 * time.Millisecond
	followLastDelay  = 5 * time.Second
)

// RestoreGrace is how long a patient consumer stays as it is after the store was
// put back from a backup: until every node has written again what came since, which
// takes a moment, and the controllers, whose election may have to wait until a
// lease that came back with the backup has run out, what they derive from that.
const RestoreGrace = 20 * time.Second

// Handler receives what happens to one kind. Its functions are called by one
// goroutine, one after the other. Put and Deleted are needed, the others may be
// nil.
type Handler struct {
	// Put delivers a new or changed object, which is shared and must not be
	// changed. The same state may come twice.
	Put func(api.Object)
	// Deleted tells that an object that was delivered is gone.
	Deleted func(api.Key)
	// Synced is called once: all that the first list held has been delivered.
	Synced func()
	// Reached is called after each list and each event: all changes of the kind
	// up to this resourceVersion were delivered. It falls when the store was put
	// back from a backup, and only then.
	Reached func(uint64)
	// Restored tells that the store was put back from a backup, before it is
	// listed again.
	Restored func()
	// Patient has the consumer stay as it is for RestoreGrace then: what others
	// know for themselves and write again is not missed meanwhile.
	Patient bool
	// Connected tells that the store answers again, or why it does not; only
	// when that changes, and first of all as soon as it is known.
	Connected func(bool, error)
}

// Follow keeps a consumer in step with all objects of one kind until ctx ends,
// through outages, compaction and even a store put back from a backup. What the
// consumer knows stays while the store can't be reached: an object is Deleted
// only when the store says so, or when a later complete list lacks it. It keeps
// keys and revisions, and no objects.
func Follow(ctx context.Context, s Store, kind *api.Kind, h Handler) {
	f := follower{store: s, kind: kind, handler: h, known: map[api.Key]uint64{}}
	delay := followFirstDelay
	for ctx.Err() == nil {
		f.progress = false
		err := f.run(ctx)
		if ctx.Err() != nil {
			return
		}
		if f.progress {
			// A stream that stood and broke says little: servers end them as
			// they please. It is an outage if the next one can't be had.
			delay = followFirstDelay
		} else {
			f.report(err)
		}
		if errors.Is(err, ErrRestored) && !f.restored(ctx) {
			return
		}
		if !Pause(ctx, s, delay/2+rand.N(delay/2)) {
			return
		}
		delay = min(2*delay, followLastDelay)
	}
}

// Pause waits for d before something is asked of the store again, less if the
// store can be reached again before: what is over must not be told for as long as
// it lasted. It returns false if ctx ended.
func Pause(ctx context.Context, s Store, d time.Duration) bool {
	timed, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	if r, ok := s.(Reconnector); ok {
		r.AwaitReconnect(timed)
	} else {
		<-timed.Done()
	}
	return ctx.Err() == nil
}

// hashSeed is for what is known of a hundred thousand objects.
var hashSeed = maphash.MakeSeed()

type follower struct {
	store   Store
	kind    *api.Kind
	handler Handler

	known    map[api.Key]uint64 // what was delivered → a hash of its resourceVersion; 0: deliver it again
	revision string             // where to resume the watch; empty: list first
	synced   bool
	reported bool
	up       bool // the last that was reported
	progress bool // this run's watch stood
}

// run lists if needed, then watches until that ends, and says why it did.
func (f *follower) run(ctx context.Context) error {
	if f.revision == "" {
		if err := f.list(ctx); err != nil {
			return err
		}
	}
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, ended := f.store.Watch(watchCtx, f.kind, f.revision)
	for event := range events {
		f.progress = true
		f.report(nil)
		f.apply(event)
	}
	err := ended()
	switch {
	case errors.Is(err, ErrRestored):
		f.distrust()
		f.revision = ""
	case errors.Is(err, ErrCompacted):
		f.revision = ""
	case err == nil:
		return fmt.Errorf("%w: the watch of %s ended", ErrUnavailable, f.kind.Plural)
	}
	return err
}

// restored returns when the restored store is to be listed; false if ctx ended.
func (f *follower) restored(ctx context.Context) bool {
	if f.handler.Restored != nil {
		f.handler.Restored()
	}
	if !f.handler.Patient {
		return true
	}
	grace := time.NewTimer(RestoreGrace)
	defer grace.Stop()
	select {
	case <-grace.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// report passes changes of connectivity on. A store that answers "list again"
// is reachable.
func (f *follower) report(err error) {
	if errors.Is(err, ErrCompacted) || errors.Is(err, ErrRestored) {
		err = nil
	}
	up := err == nil
	if f.reported && f.up == up {
		return
	}
	f.reported, f.up = true, up
	if f.handler.Connected != nil {
		f.handler.Connected(up, err)
	}
}

// distrust has all be delivered again: the same revision may now mean other
// content.
func (f *follower) distrust() {
	for key := range f.known {
		f.known[key] = 0
	}
}

// list brings the consumer to the state of a list.
func (f *follower) list(ctx context.Context) error {
	list, err := f.take(ctx)
	if err != nil {
		return err
	}
	f.report(nil)
	f.revision = list.Revision
	f.reached(list.Reached)
	if !f.synced {
		f.synced = true
		if f.handler.Synced != nil {
			f.handler.Synced()
		}
	}
	return nil
}

// take delivers a list; as it comes, if nothing can be gone.
func (f *follower) take(ctx context.Context) (List, error) {
	if pager, ok := f.store.(Pager); ok && len(f.known) == 0 {
		list, err := pager.Pages(ctx, f.kind, f.putAll)
		if err != nil {
			f.distrust() // the next list may be of another history
		}
		return list, err
	}
	list, err := f.store.List(ctx, f.kind, "")
	if err != nil {
		return list, err
	}
	f.report(nil)
	f.prune(list)
	f.putAll(list.Items)
	return list, nil
}

// prune deletes what the list lacks. What is gone goes first, so that its name and
// addresses are free for what came.
func (f *follower) prune(list List) {
	present := make(map[api.Key]struct{}, len(list.Items)+len(list.Unreadable))
	for _, obj := range list.Items {
		present[api.KeyOf(obj)] = struct{}{}
	}
	for _, key := range list.Unreadable {
		present[key] = struct{}{}
	}
	var gone []api.Key
	for key := range f.known {
		if _, ok := present[key]; !ok {
			gone = append(gone, key)
		}
	}
	slices.SortFunc(gone, func(a, b api.Key) int { return strings.Compare(a.String(), b.String()) })
	for _, key := range gone {
		f.delete(key)
	}
}

func (f *follower) apply(event Event) {
	switch event.Type {
	case Put:
		f.put(event.Object)
	case Deleted:
		f.delete(api.KeyOf(event.Object))
	}
	f.revision = event.Revision
	f.reached(event.Reached)
}

func (f *follower) reached(version uint64) {
	if f.handler.Reached != nil {
		f.handler.Reached(version)
	}
}

func (f *follower) putAll(objects []api.Object) {
	f.report(nil)
	for _, obj := range objects {
		f.put(obj)
	}
}

func (f *follower) put(obj api.Object) {
	key, version := api.KeyOf(obj), uint64(0)
	if text := obj.GetResourceVersion(); text != "" {
		version = maphash.String(hashSeed, text) | 1
	}
	if version != 0 && f.known[key] == version {
		return
	}
	key.Namespace = unique.Make(key.Namespace).Value() // of all that are in it, one copy
	f.known[key] = version
	f.handler.Put(obj)
}

func (f *follower) delete(key api.Key) {
	if _, ok := f.known[key]; ok {
		delete(f.known, key)
		f.handler.Deleted(key)
	}
}
