package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/store"
)

// publisher writes what the node knows to the store, behind the back of those
// who wait: pods start and stop while the store is down, and others learn of it
// when it is back.
type publisher struct {
	store store.Store
	node  string
	log   *slog.Logger
	wake  chan struct{}
	// orchestrated: pods' endpoints are derived from what others write, and
	// the node's object is made by the kubelet. Only what is ours of that object
	// is written.
	orchestrated bool

	mu      sync.Mutex
	pods    map[api.Key]*api.WorkloadEndpoint // attached here
	pending map[api.Key]struct{}              // to be written, or deleted if not in pods
	edit    func(*corev1.Node)                // makes the node's object say what is so; nil: not known yet
	dirty   bool                              // the node's object has to be looked at
	sweep   bool                              // the store's endpoints of this node have to be looked at
}

func newPublisher(s store.Store, node string, log *slog.Logger) *publisher {
	_, orchestrated := s.(store.Orchestrated)
	return &publisher{
		store: s, node: node, log: log, wake: make(chan struct{}, 1), orchestrated: orchestrated,
		pods: map[api.Key]*api.WorkloadEndpoint{}, pending: map[api.Key]struct{}{},
	}
}

func (p *publisher) update(f func()) {
	p.mu.Lock()
	f()
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// attached publishes a pod. One that was adopted has no name until the store's
// endpoint tells it.
func (p *publisher) attached(w *api.WorkloadEndpoint) {
	if w.Name == "" || p.orchestrated {
		return
	}
	p.update(func() {
		p.pods[api.KeyOf(w)] = w
		p.pending[api.KeyOf(w)] = struct{}{}
	})
}

// detached takes back what an attachment published; the endpoint of another
// attachment of the same pod name stays, or is published instead. other finds that
// one, or nil, among the attachments that are not being taken down. It is called
// under the lock: an endpoint that it returns can't have been detached before.
func (p *publisher) detached(key api.Key, id ipam.ID, other func() *api.WorkloadEndpoint) {
	if key.Name == "" || p.orchestrated {
		return
	}
	p.update(func() {
		if w := p.pods[key]; w != nil && attachmentOf(w) != id {
			return
		}
		delete(p.pods, key)
		if w := other(); w != nil {
			p.pods[key] = w
		}
		p.pending[key] = struct{}{}
	})
}

// attachmentOf is the attachment that published an endpoint.
func attachmentOf(w *api.WorkloadEndpoint) ipam.ID {
	return ipam.ID{ContainerID: w.Spec.ContainerID, IfName: w.Spec.Endpoint}
}

// observe compares what the store says of a pod of this node with what is so.
// An endpoint without a pod is what a crash or a reboot left.
func (p *publisher) observe(w *api.WorkloadEndpoint) {
	if p.orchestrated {
		return
	}
	key := api.KeyOf(w)
	p.mu.Lock()
	own := p.pods[key]
	p.mu.Unlock()
	if own == nil || attachmentOf(own) != attachmentOf(w) {
		p.update(func() { p.pending[key] = struct{}{} })
	}
}

// gone says that a pod's endpoint was deleted from the store; if the pod is
// attached it is written again.
func (p *publisher) gone(key api.Key) {
	p.mu.Lock()
	own := p.pods[key]
	p.mu.Unlock()
	if own != nil {
		p.update(func() { p.pending[key] = struct{}{} })
	}
}

// everything has all that the node knows compared with the store.
func (p *publisher) everything() {
	p.update(func() {
		p.dirty, p.sweep = true, true
		for key := range p.pods {
			p.pending[key] = struct{}{}
		}
	})
}

// publishNode sees to it that the node's object exists and that edit would not
// change it.
func (p *publisher) publishNode(edit func(*corev1.Node)) {
	p.update(func() { p.edit, p.dirty = edit, true })
}

// nodeChanged has the node's object looked at again.
func (p *publisher) nodeChanged() {
	p.update(func() { p.dirty = true })
}

// run writes what is pending until ctx ends.
func (p *publisher) run(ctx context.Context) {
	const minRetry, maxRetry = 100 * time.Millisecond, 5 * time.Second
	retry := minRetry
	for {
		var again <-chan time.Time
		if err := p.flush(ctx); err != nil && ctx.Err() == nil {
			p.log.Debug("publish later", "error", err)
			again = time.After(retry)
			retry = min(2*retry, maxRetry)
		} else {
			retry = minRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-again:
		}
	}
}

// flush writes all that is pending and returns the first error; what failed
// stays pending.
func (p *publisher) flush(ctx context.Context) error {
	p.mu.Lock()
	edit, dirty, sweep := p.edit, p.dirty, p.sweep
	keys := slices.Collect(maps.Keys(p.pending))
	p.dirty, p.sweep = false, false
	clear(p.pending)
	p.mu.Unlock()

	var errs []error
	if sweep {
		if err := p.findStale(ctx); err != nil {
			errs = append(errs, err)
			p.mu.Lock()
			p.sweep = true
			p.mu.Unlock()
		}
	}
	if edit != nil && dirty {
		if err := p.writeNode(ctx, edit); err != nil {
			errs = append(errs, err)
			p.mu.Lock()
			p.dirty = true
			p.mu.Unlock()
		}
	}
	for _, key := range keys {
		if err := p.writePod(ctx, key); err != nil {
			errs = append(errs, err)
			p.mu.Lock()
			p.pending[key] = struct{}{}
			p.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// findStale makes pending what the store says of pods that are not, or no longer,
// on this node.
func (p *publisher) findStale(ctx context.Context) error {
	list, err := p.store.List(ctx, api.WorkloadEndpointKind, "")
	for _, obj := range list.Items {
		if w := obj.(*api.WorkloadEndpoint); w.Spec.Node == p.node {
			p.observe(w)
		}
	}
	return err
}

func (p *publisher) writePod(ctx context.Context, key api.Key) error {
	p.mu.Lock()
	want := p.pods[key]
	p.mu.Unlock()
	if want != nil {
		_, err := p.store.Create(ctx, want)
		if !errors.Is(err, store.ErrExists) {
			return err
		}
	}
	got, err := p.store.Get(ctx, api.WorkloadEndpointKind, key)
	if errors.Is(err, store.ErrNotFound) && want == nil {
		return nil
	}
	if err != nil {
		return err
	}
	stored := got.(*api.WorkloadEndpoint)
	if want == nil {
		if stored.Spec.Node != p.node {
			return nil // the pod was started anew elsewhere
		}
		return p.store.Delete(ctx, api.WorkloadEndpointKind, key, stored.ResourceVersion)
	}
	if stored.Spec.Node == want.Spec.Node && attachmentOf(stored) == attachmentOf(want) {
		return nil // labels may have been changed since: they are the users'
	}
	next := want.DeepCopyObject().(*api.WorkloadEndpoint)
	next.ResourceVersion = stored.ResourceVersion
	_, err = p.store.Update(ctx, next)
	return err
}

// ensureNode returns when the node's object is in the store.
func (p *publisher) ensureNode(ctx context.Context) error {
	p.mu.Lock()
	edit := p.edit
	p.mu.Unlock()
	if edit == nil {
		return nil
	}
	err := p.writeNode(ctx, edit)
	if errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrConflict) {
		return nil // it is there: somebody else has just written it
	}
	return err
}

func (p *publisher) writeNode(ctx context.Context, edit func(*corev1.Node)) error {
	got, err := p.store.Get(ctx, api.NodeKind, api.Key{Name: p.node})
	if errors.Is(err, store.ErrNotFound) && p.orchestrated {
		return fmt.Errorf("the kubelet has not registered the node: %w", err)
	}
	if errors.Is(err, store.ErrNotFound) {
		node := api.NodeKind.New().(*corev1.Node)
		node.Name = p.node
		edit(node)
		_, err = p.store.Create(ctx, node)
		return err
	}
	if err != nil {
		return err
	}
	node := got.(*corev1.Node).DeepCopy()
	edit(node)
	if equality.Semantic.DeepEqual(node, got) {
		return nil
	}
	_, err = p.store.Update(ctx, node)
	return err
}
