package kube

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	json "github.com/go-json-experiment/json/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiwatch "k8s.io/apimachinery/pkg/watch"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// Watch implements store.Store with one request a watch. The library's
// reflector would keep all objects and hide outages; our caller keeps what it
// needs, and wants to know.
func (s *Store) Watch(ctx context.Context, kind *api.Kind, revision string) (<-chan store.Event, func() error) {
	return store.Stream(ctx, kind, func(ch chan<- store.Event) error { return s.watch(ctx, kind, revision, ch) })
}

func (s *Store) watch(ctx context.Context, kind *api.Kind, revision string, ch chan<- store.Event) error {
	from, err := parsePosition(revision)
	if err != nil {
		return err
	}
	w := watch{store: s, kind: kind, ch: ch}
	w.ctx, w.cancel = context.WithCancel(ctx)
	defer w.cancel()
	defer context.AfterFunc(s.ctx, w.cancel)()
	return s.classify(ctx, w.run(from))
}

// watch is one stream.
type watch struct {
	store  *Store
	kind   *api.Kind
	ch     chan<- store.Event
	ctx    context.Context
	cancel context.CancelFunc
}

// frame is what the API server sends.
type frame struct {
	Type   apiwatch.EventType `json:"type"`
	Object json.RawMessage    `json:"object"`
}

func (w *watch) run(from position) error {
	stream, err := w.open(from)
	if err != nil {
		return err
	}
	defer stream.Close()
	if err := w.send(from.bookmark()); err != nil {
		return err
	}
	frames := json.NewDecoder(stream)
	at := from
	for {
		var f frame
		if err := frames.Decode(&f); err != nil {
			return fmt.Errorf("%w: the stream ended: %w", store.ErrUnavailable, err)
		}
		if err := w.take(f, &at); err != nil {
			return err
		}
	}
}

// open asks for the events after a position. Only once the stream stands is it
// asked whether the history is still the one that the position is of: the other
// way round it could be replaced in between.
func (w *watch) open(from position) (io.ReadCloser, error) {
	timer := time.AfterFunc(callTimeout, w.cancel)
	stream, err := selected(w.kind, w.store.client.Get().AbsPath(listPath(w.kind, ""))).
		Param("watch", "true").
		Param("allowWatchBookmarks", "true").
		Param("resourceVersion", strconv.FormatUint(from.revision, 10)).
		Stream(w.ctx)
	if !timer.Stop() {
		if err == nil {
			stream.Close()
		}
		return nil, fmt.Errorf("%w: no answer within %s", store.ErrUnavailable, callTimeout)
	}
	refused := w.store.classify(w.ctx, err)
	if err := w.store.confirm(w.ctx, from); err != nil {
		if refused == nil {
			stream.Close()
		}
		return nil, err
	}
	if refused != nil {
		return nil, refused
	}
	return stream, nil
}

// take passes a frame on and moves at, the position that was reached.
func (w *watch) take(f frame, at *position) error {
	if f.Type == apiwatch.Error {
		var status metav1.Status
		if err := json.Unmarshal(f.Object, &status); err != nil {
			return fmt.Errorf("%w: the watch failed: %s", store.ErrUnavailable, f.Object)
		}
		return refusal(status)
	}
	var meta struct {
		Metadata struct{ ResourceVersion string }
	}
	if err := json.Unmarshal(f.Object, &meta); err != nil {
		return fmt.Errorf("an event of the watch is no object: %w", err)
	}
	revision, err := strconv.ParseUint(meta.Metadata.ResourceVersion, 10, 64)
	if err != nil {
		return fmt.Errorf("resourceVersion %q of an event is no number", meta.Metadata.ResourceVersion)
	}
	at.revision = revision
	event := at.bookmark()
	switch f.Type {
	case apiwatch.Deleted:
		w.store.rubbish.Forget(objectPath(w.kind, keyOf(f.Object)))
		event.Type, event.Object = store.Deleted, w.kind.New()
		key := keyOf(f.Object)
		event.Object.SetNamespace(key.Namespace)
		event.Object.SetName(key.Name)
		event.Object.SetResourceVersion(meta.Metadata.ResourceVersion)
	case apiwatch.Added, apiwatch.Modified:
		obj, err := decode(w.kind, f.Object)
		if err != nil {
			w.store.unreadable(w.kind, f.Object, err)
			break
		}
		w.store.rubbish.Forget(objectPath(w.kind, keyOf(f.Object)))
		if obj != nil { // else it is a pod of the host's network, which never was an endpoint
			event.Type, event.Object = store.Put, obj
		}
	}
	return w.send(event)
}

func (w *watch) send(event store.Event) error {
	select {
	case w.ch <- event:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}
