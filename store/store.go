// Package store is where intent lives: the interface that etcd, the Kubernetes
// API and memory implement, and Follow, which keeps a consumer in step with
// one kind whatever happens to the connection.
//
// It never interprets objects: validation and defaults are done before an
// object is written.
package store

import (
	"context"
	"errors"

	"github.com/twill-net/twill/api"
)

// Errors that a caller branches on. Implementations wrap them with what was
// asked for.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrConflict    = errors.New("changed meanwhile")   // compare-and-swap failed
	ErrCompacted   = errors.New("revision is too old") // a watch can't resume: list again
	ErrUnavailable = errors.New("store is unreachable")
)

// EventType says what happened to an object.
type EventType string

// The types of events.
const (
	Put     EventType = "put" // created or changed
	Deleted EventType = "deleted"
)

// Event is one change. For Deleted, Object is the last known state and may hold
// only type and key.
type Event struct {
	Type   EventType
	Object api.Object
}

// List is a consistent snapshot of one kind.
type List struct {
	Items    []api.Object
	Revision string // a watch from here misses nothing
}

// Store keeps objects. Objects that go in are not kept, objects that come out
// are the caller's, but for those of a Watch or List, which are shared and
// must not be changed. The object's resourceVersion is the store's revision of
// it. All methods may be called concurrently.
type Store interface {
	// Get returns ErrNotFound when there is no such object.
	Get(ctx context.Context, kind *api.Kind, key api.Key) (api.Object, error)
	// List returns all objects of the kind, of one namespace if that is not
	// empty. None is an empty list and no error.
	List(ctx context.Context, kind *api.Kind, namespace string) (List, error)
	// Watch delivers every change of the kind after the revision, in order,
	// until ctx ends or the stream breaks; then the channel is closed and the
	// function returned says why (nil: ctx ended; ErrCompacted: list again).
	Watch(ctx context.Context, kind *api.Kind, revision string) (<-chan Event, func() error)
	// Create stores a new object and returns it with uid, creation time and
	// resourceVersion set. ErrExists when there is one with that key.
	Create(ctx context.Context, obj api.Object) (api.Object, error)
	// Update replaces the object if its resourceVersion is still the stored
	// one, else ErrConflict; ErrNotFound when it is gone.
	Update(ctx context.Context, obj api.Object) (api.Object, error)
	// Delete removes the object; ErrNotFound when there is none. If
	// resourceVersion is not empty and not the stored one: ErrConflict.
	Delete(ctx context.Context, kind *api.Kind, key api.Key, resourceVersion string) error
	// Close ends watches and connections.
	Close() error
}
