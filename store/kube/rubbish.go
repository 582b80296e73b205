package kube

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// finding is a custom resource that is none of ours, such as one that was stored
// when its definition was another. The API server does not check what it reads.
type finding struct {
	store.Unreadable
	version string
}

// unreadable remembers and logs a bad object, once for each version of it.
func (s *Store) unreadable(kind *api.Kind, raw []byte, reason error) finding {
	var o struct {
		Metadata struct{ ResourceVersion string }
	}
	_ = json.Unmarshal(raw, &o)
	found := finding{store.Unreadable{Kind: kind, Path: objectPath(kind, keyOf(raw)), Reason: reason}, o.Metadata.ResourceVersion}
	s.mu.Lock()
	before, known := s.rubbish[found.Path]
	s.rubbish[found.Path] = found
	s.mu.Unlock()
	if !known || before.version != found.version {
		s.log.Warn("unreadable object in the store is left out", "path", found.Path, "version", found.version, "reason", reason)
	}
	return found
}

// replaceRubbish makes found all that is known to be bad of a kind, or of it in
// one namespace.
func (s *Store) replaceRubbish(kind *api.Kind, namespace string, found map[string]finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.rubbish, func(path string, f finding) bool {
		_, still := found[path]
		return !still && f.Kind == kind && (namespace == "" || strings.HasPrefix(path, listPath(kind, namespace)+"/"))
	})
}

func (s *Store) forgetRubbish(kind *api.Kind, key api.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rubbish, objectPath(kind, key))
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
