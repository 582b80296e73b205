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
	"net/netip"

	"github.com/twill-net/twill/api"
)

// Errors that a caller branches on. Implementations wrap them with what was
// asked for.
var (
	ErrNotFound     = errors.New("not found")
	ErrExists       = errors.New("already exists")
	ErrConflict     = errors.New("changed meanwhile")         // compare-and-swap failed
	ErrCompacted    = errors.New("revision is too old")       // a watch can't resume: list again
	ErrRestored     = errors.New("store has another history") // put back from a backup: list again and trust no resourceVersion
	ErrUnauthorized = errors.New("the store does not accept the credentials")
	ErrUnavailable  = errors.New("store is unreachable") // of a write: it may or may not have happened
)

// EventType says what happened to an object.
type EventType string

// The types of events.
const (
	Put     EventType = "put" // created or changed
	Deleted EventType = "deleted"
	// Bookmark changes nothing. One comes first of all when a watch stands, and
	// more whenever the store tells that everything up to Revision was sent.
	Bookmark EventType = "bookmark"
)

// Event is one change. For Deleted, Object is the last known state and may hold
// only type and key; for Bookmark it is nil.
type Event struct {
	Type     EventType
	Object   api.Object
	Revision string // a watch from here misses nothing that comes after this event
	// Reached: all changes of the kind up to this resourceVersion were delivered,
	// this event included.
	Reached uint64
}

// List is a consistent snapshot of one kind.
type List struct {
	Items    []api.Object
	Revision string // a watch from here misses nothing
	Reached  uint64 // the newest resourceVersion of the kind's changes that the list may hold
	// Unreadable are the objects that exist and whose stored form is no object
	// of the kind. They are not in Items, and they are not gone either.
	Unreadable []api.Key
}

// Store keeps objects. Objects that go in are not kept, objects that come out
// are the caller's, but for those of a Watch or List, which are shared and
// must not be changed. The object's resourceVersion is the store's revision of
// it, a decimal number that grows with each change of the kind (of Kubernetes
// since KEP-5504 by contract, with etcd always). Revisions of lists and events
// are opaque. All methods may be called
// concurrently, and none blocks for ever when the store is down: it returns
// ErrUnavailable.
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
	// one, else ErrConflict; ErrNotFound when it is gone. uid and creation time
	// stay, generation grows when more than metadata and status changed. An
	// update that changes nothing is no write, and no event.
	Update(ctx context.Context, obj api.Object) (api.Object, error)
	// Delete removes the object; ErrNotFound when there is none. If
	// resourceVersion is not empty and not the stored one: ErrConflict.
	Delete(ctx context.Context, kind *api.Kind, key api.Key, resourceVersion string) error
	// Close ends watches and connections.
	Close() error
}

// Elector is implemented by stores that can elect one of several processes.
type Elector interface {
	// Campaign waits until this process is the leader called name, or ctx ends.
	// The leader acts until lost is closed: its claim ran out. Two may overlap
	// for a moment, in which compare-and-swap keeps them from harm. resign hands
	// over at once and must be called in the end.
	Campaign(ctx context.Context, name string) (lost <-chan struct{}, resign func(), err error)
}

// Reconnector is implemented by stores that notice by themselves when they can be
// reached again.
type Reconnector interface {
	// AwaitReconnect returns when the connection, which is down or goes down, stands
	// again, or when ctx ends.
	AwaitReconnect(ctx context.Context)
}

// Remote is implemented by stores that are reached over the network.
type Remote interface {
	// Addresses lists, sorted, the addresses of servers to which connections were
	// made. A name is in it once it has led to a connection.
	Addresses() []netip.Addr
}

// Pager is implemented by stores whose lists come in pages.
type Pager interface {
	// Pages is List of all namespaces, whose Items it hands to take, in order, as
	// they come, so that they are worked on meanwhile and not all held at once. If it
	// fails, take may have had some.
	Pages(ctx context.Context, kind *api.Kind, take func([]api.Object)) (List, error)
}

// Orchestrated is implemented by stores in which somebody else makes pods and
// nodes, as Kubernetes does. WorkloadEndpoints are derived there and can't be
// written, Get answers for one also before the pod has an address, and of a Node
// only annotations, labels and conditions of our own are ours to write.
type Orchestrated interface {
	Orchestrator() string // its name
	// ServiceProxy says whether the cluster runs a program on its nodes that serves
	// Services, such as kube-proxy.
	ServiceProxy(ctx context.Context) (bool, error)
	// ServiceRanges lists the ranges of which Services get cluster IPs. Clusters
	// that do not say it return an error.
	ServiceRanges(ctx context.Context) ([]netip.Prefix, error)
}

// EventRecorder is implemented by stores that keep Kubernetes' Events.
type EventRecorder interface {
	// RecordWarning creates an Event of type Warning about an object that is in a
	// namespace. The message is one line of at most 1024 bytes. Each call makes an
	// Event of its own.
	RecordWarning(ctx context.Context, about api.Object, reason, message string) error
}

// Unreadable is a stored value that is no object: someone else wrote it, or
// wrote it for another version.
type Unreadable struct {
	Kind   *api.Kind
	Path   string // where it lies in the store
	Reason error
}

// Inspector is implemented by stores that others can write to without Twill's
// validation. The result is what is unreadable now, as far as lists and watches
// have seen.
type Inspector interface {
	Unreadable() []Unreadable
}
