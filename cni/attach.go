package cni

import (
	"context"
	"errors"
	"net/netip"

	"github.com/twill-net/twill/api"
)

// Errors that an Attacher's methods return wrapped, and that have a code of
// their own; see also ipam.ErrExhausted, ipam.ErrAddress and
// store.ErrUnavailable. A *client.Error is passed on as it is.
var (
	// ErrAttached: the interface is attached already.
	ErrAttached = errors.New("already attached")
	// ErrUnknownContainer: the container was never attached. It tells the
	// runtime that there is nothing to clean up, so it is not for Attach that
	// failed half-way.
	ErrUnknownContainer = errors.New("unknown container")
	// ErrNetNS: what CNI_NETNS names is no network namespace.
	ErrNetNS = errors.New("CNI_NETNS is invalid")
	// ErrTryAgain: what hinders will pass by itself.
	ErrTryAgain = errors.New("try again later")
	// ErrLimited: nothing can be attached, and pods that are attached may have
	// lost connectivity. For Status.
	ErrLimited = errors.New("connectivity is limited")
)

// Attacher does what the commands ask for. Methods are called concurrently, but
// never two at once for the same container. ctx ends when the runtime gives up
// or the agent stops; Attach then undoes what it did.
type Attacher interface {
	// Attach makes the pod's interface and returns when packets may flow.
	Attach(ctx context.Context, a Attachment) (Attached, error)
	// Detach undoes Attach as far as anything is left of it; an unknown
	// attachment is no error. The pod's namespace may be gone.
	Detach(ctx context.Context, id ID) error
	// Check says what is wrong with an attachment. prev is what the runtime
	// remembers of it.
	Check(ctx context.Context, a Attachment, prev Attached) error
	// GC detaches what is attached to the network and not in keep, as much of
	// it as possible, and returns all errors.
	GC(ctx context.Context, network string, keep []ID) error
	// Status says why Attach would fail now; nil if it would not.
	Status(ctx context.Context) error
}

// ID names an attachment.
type ID struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Attachment is what a runtime asks for.
type Attachment struct {
	ID
	Network        string // name of the network configuration
	NetNS          string // path of the pod's network namespace
	Namespace, Pod string
	UID            string // of the Pod; empty outside Kubernetes
	Labels         map[string]string
	Ports          []api.WorkloadEndpointPort // named ports and host ports
	Want           []netip.Addr               // at most one of a family
	MAC            string                     // of the pod's end; empty: any
}

// Attached is what a pod has got.
type Attached struct {
	HostInterface string
	HostMAC       string
	PodMAC        string
	MTU           int
	Addresses     []netip.Prefix // IPv4 first
	Gateways      []netip.Addr   // at most one of a family
	Routes        []Route        // inside the pod
}

// Route is a route inside a pod. A zero Gateway means that the destination is
// on the link.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr
}
