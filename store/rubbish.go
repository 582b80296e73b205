package store

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Rubbish is what lies in a store and is no object: others can write there without
// our validation, and one bad value must cost no more than itself. It is for
// implementations of Inspector, and may be used concurrently.
type Rubbish struct {
	mu    sync.Mutex
	found map[string]rubbish // by path
}

type rubbish struct {
	Unreadable
	revision string
}

// Add remembers a bad value and logs it, once for each revision of it.
func (r *Rubbish) Add(log *slog.Logger, u Unreadable, revision string) {
	r.mu.Lock()
	before, known := r.found[u.Path]
	if r.found == nil {
		r.found = map[string]rubbish{}
	}
	r.found[u.Path] = rubbish{u, revision}
	r.mu.Unlock()
	if !known || before.revision != revision {
		log.Warn("unreadable object in the store is left out", "path", u.Path, "revision", revision, "reason", u.Reason)
	}
}

// Forget is called when what lies at the path is an object, or gone.
func (r *Rubbish) Forget(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.found, path)
}

// Retain forgets what was listed and is bad no more.
func (r *Rubbish) Retain(bad map[string]bool, listed func(Unreadable) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.found, func(path string, f rubbish) bool { return !bad[path] && listed(f.Unreadable) })
}

// Unreadable implements Inspector, ordered by path.
func (r *Rubbish) Unreadable() (all []Unreadable) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.found {
		all = append(all, f.Unreadable)
	}
	slices.SortFunc(all, func(a, b Unreadable) int { return strings.Compare(a.Path, b.Path) })
	return all
}
