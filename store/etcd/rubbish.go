package etcd

import (
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// rubbish is what lies under our prefix and is no object, by path. Others can
// write there without our validation; one bad value must cost no more than
// itself.
type rubbish map[string]finding

type finding struct {
	store.Unreadable
	revision int64
}

// unreadable remembers and logs a bad value, once for each revision of it.
func (s *Store) unreadable(kind *api.Kind, kv *mvccpb.KeyValue, reason error) finding {
	found := finding{store.Unreadable{Kind: kind, Path: string(kv.Key), Reason: reason}, kv.ModRevision}
	s.mu.Lock()
	known := s.rubbish[found.Path].revision == kv.ModRevision
	s.rubbish[found.Path] = found
	s.mu.Unlock()
	if !known {
		s.log.Warn("unreadable object in the store is left out", "path", found.Path, "revision", kv.ModRevision, "reason", reason)
	}
	return found
}

// replaceRubbish makes found all that is known to be bad under the prefix.
func (s *Store) replaceRubbish(prefix string, found rubbish) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path := range s.rubbish {
		if _, still := found[path]; !still && strings.HasPrefix(path, prefix) {
			delete(s.rubbish, path)
		}
	}
}

func (s *Store) forgetRubbish(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rubbish, path)
}

// Unreadable implements store.Inspector, ordered by path.
func (s *Store) Unreadable() []store.Unreadable {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []store.Unreadable
	for _, found := range s.rubbish {
		out = append(out, found.Unreadable)
	}
	slices.SortFunc(out, func(a, b store.Unreadable) int { return strings.Compare(a.Path, b.Path) })
	return out
}
