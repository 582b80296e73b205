// Package controller does what a cluster needs done once: it makes the first pools
// of addresses, clears away what a deleted node leaves behind, and tells on a Service
// what nodes do not program of it. Where there is no
// Kubernetes to do it, it also gives services their addresses and node ports,
// derives EndpointSlices from services and workload endpoints, and keeps the
// namespaces that everybody expects. Of several controllers one acts at a time.
//
// It never touches a node's kernel, never changes an EndpointSlice that it did
// not write, and keeps nothing of its own: all it knows is in the store.
package controller

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// The range of node ports when the configuration gives none.
const (
	FirstNodePort = 30000
	LastNodePort  = 32767
)

// Annotations of a WorkloadEndpoint by which its owner says that it serves no
// new connections, with the value "false" or "true".
const (
	ReadyAnnotation       = api.GroupTwill + "/ready"
	TerminatingAnnotation = api.GroupTwill + "/terminating"
)

// Manager is the value of the label endpointslice.kubernetes.io/managed-by of
// the EndpointSlices that the controller wrote.
const Manager = "twill-controller"

const (
	workers        = 8 // objects reconciled at once, each waiting for the store
	firstRetry     = 100 * time.Millisecond
	lastRetry      = 5 * time.Second
	electionName   = "controller"
	electionPeriod = time.Second // between attempts to stand for election
)

// Config says from where pods and services get their addresses.
type Config struct {
	// PodCIDRs become pools as long as there is no pool of their family.
	PodCIDRs []netip.Prefix
	// ServiceCIDRs are at most one range of a family; the first is the
	// cluster's primary family. None: services get no addresses.
	ServiceCIDRs []netip.Prefix
	// NodePortRange is the first and the last node port; zero is
	// FirstNodePort to LastNodePort.
	NodePortRange [2]int
	// Logger gets what happens to services and nodes; nil drops it.
	Logger *slog.Logger
}

// Controller keeps one cluster in order. Make it with New.
type Controller struct {
	store     store.Store
	log       *slog.Logger
	allocator ranges
	podCIDRs  []netip.Prefix
	// orchestrated: services, slices, endpoints and namespaces are another's.
	orchestrated bool
}

// New returns a controller that does nothing until Run. A configuration that is
// no range, or two of a family, is told by Run.
func New(s store.Store, c Config) *Controller {
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if c.NodePortRange == [2]int{} {
		c.NodePortRange = [2]int{FirstNodePort, LastNodePort}
	}
	_, orchestrated := s.(store.Orchestrated)
	return &Controller{
		store: s, log: log, allocator: ranges{cidrs: c.ServiceCIDRs, ports: c.NodePortRange},
		podCIDRs: c.PodCIDRs, orchestrated: orchestrated,
	}
}

// Run stands for election and acts whenever it is elected, until ctx ends; that
// is no error. It survives any outage of the store.
func (c *Controller) Run(ctx context.Context) error {
	if err := c.allocator.check(); err != nil {
		return err
	}
	elector, ok := c.store.(store.Elector)
	if !ok {
		c.lead(ctx)
		return nil
	}
	for ctx.Err() == nil {
		lost, resign, err := elector.Campaign(ctx, electionName)
		if err != nil {
			c.log.Debug("election failed", "error", err)
			wait(ctx, electionPeriod)
			continue
		}
		c.log.Info("this controller acts now")
		leading, stop := context.WithCancel(ctx)
		go func() {
			select {
			case <-lost:
				c.log.Warn("this controller lost the election")
			case <-leading.Done():
			}
			stop()
		}()
		c.lead(leading)
		stop()
		resign()
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// item is something to be reconciled.
type item struct {
	kind *api.Kind
	key  api.Key
}

// lead acts as the only controller until ctx ends. All its knowledge is built
// anew: another one may have acted meanwhile.
func (c *Controller) lead(ctx context.Context) {
	r := &reconciler{
		Controller: c,
		state:      newState(),
		claims:     newClaims(),
		refusals:   newRefusals(),
		queue:      newQueue[item](),
		starved:    map[api.Key]struct{}{},
		complained: map[item]bool{},
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer r.queue.close()
	handlers := r.handlers()
	synced := make(chan struct{}, len(handlers))
	for kind, h := range handlers {
		h.Synced = func() { synced <- struct{}{} }
		all.Go(func() { store.Follow(ctx, c.store, kind, h) })
	}
	for range handlers {
		select {
		case <-synced:
		case <-ctx.Done():
			return
		}
	}
	all.Go(func() { r.sweepNodes(ctx) })
	all.Go(func() { r.makePools(ctx) })
	if !r.orchestrated {
		for _, name := range expectedNamespaces {
			r.queue.add(item{api.NamespaceKind, api.Key{Name: name}})
		}
	}
	for range workers {
		all.Go(func() { r.work(ctx) })
	}
	<-ctx.Done()
}

// reconciler is a controller in office.
type reconciler struct {
	*Controller
	queue *queue[item]

	mu         sync.Mutex
	state      *state
	claims     *claims
	refusals   *refusals
	starved    map[api.Key]struct{} // services that found a range exhausted
	complained map[item]bool        // an error was logged since the last success
}

// handlers feed the state and queue what is touched. Nothing is reconciled
// before all kinds are synced: to derive from half of the cluster would be to
// delete the other half.
func (r *reconciler) handlers() map[*api.Kind]store.Handler {
	queued := func(kind *api.Kind) (func(api.Object), func(api.Key)) {
		return func(obj api.Object) { r.queue.add(item{kind, api.KeyOf(obj)}) },
			func(key api.Key) { r.queue.add(item{kind, key}) }
	}
	putNamespace, deletedNamespace := queued(api.NamespaceKind)
	_, clearNode := queued(api.NodeKind)
	deletedNode := func(key api.Key) {
		r.noteRefusals(key.Name, "")
		clearNode(key)
	}
	// A node that joined after a backup writes its object again when that is
	// put back, and its blocks and endpoints are not to be cleared before.
	nodes := store.Handler{Put: func(obj api.Object) { r.putNode(obj.(*corev1.Node)) }, Deleted: deletedNode, Patient: true}
	if r.orchestrated {
		return map[*api.Kind]store.Handler{
			api.NodeKind:    nodes,
			api.ServiceKind: {Put: func(obj api.Object) { r.examineService(obj.(*corev1.Service)) }, Deleted: func(api.Key) {}},
		}
	}
	return map[*api.Kind]store.Handler{
		api.NamespaceKind: {Put: putNamespace, Deleted: deletedNamespace},
		api.NodeKind:      nodes,
		api.ServiceKind: {
			Put:     func(obj api.Object) { r.putService(obj.(*corev1.Service)) },
			Deleted: r.deletedService,
			Connected: func(up bool, err error) {
				if up {
					r.log.Info("connected to the store")
				} else {
					r.log.Warn("the store can't be reached", "error", err)
				}
			},
		},
		api.WorkloadEndpointKind: {
			Put: func(obj api.Object) {
				r.touch(func() []api.Key { return r.state.putEndpoint(obj.(*api.WorkloadEndpoint)) })
			},
			Deleted: func(key api.Key) { r.touch(func() []api.Key { return r.state.deleteEndpoint(key) }) },
		},
		api.EndpointSliceKind: {
			Put: func(obj api.Object) {
				r.touch(func() []api.Key { return r.state.putSlice(obj.(*discoveryv1.EndpointSlice)) })
			},
			Deleted: func(key api.Key) { r.touch(func() []api.Key { return r.state.deleteSlice(key) }) },
		},
	}
}

// touch changes the state and queues the services that this concerns.
func (r *reconciler) touch(change func() []api.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range change() {
		r.queue.add(item{api.ServiceKind, key})
	}
}

func (r *reconciler) putService(svc *corev1.Service) {
	r.examineService(svc)
	r.touch(func() []api.Key {
		r.state.putService(svc)
		return append(r.claim(svc), api.KeyOf(svc))
	})
}

func (r *reconciler) deletedService(key api.Key) {
	r.touch(func() []api.Key {
		r.state.deleteService(key)
		delete(r.starved, key)
		return append(r.freed(r.claims.replace(key, time.Time{}, nil)), key)
	})
}

// claim makes what stands in the service all that it claims, and returns the
// services that this concerns.
func (r *reconciler) claim(svc *corev1.Service) []api.Key {
	key := api.KeyOf(svc)
	before := len(r.claims.held[key])
	concerned := r.claims.replace(key, svc.CreationTimestamp.Time, claimedBy(svc))
	if len(r.claims.held[key]) < before {
		return r.freed(concerned)
	}
	return concerned
}

// freed adds those that wait for anything to become free.
func (r *reconciler) freed(concerned []api.Key) []api.Key {
	for key := range r.starved {
		concerned = append(concerned, key)
	}
	return concerned
}

// work reconciles until the queue closes.
func (r *reconciler) work(ctx context.Context) {
	for {
		it, ok := r.queue.take()
		if !ok {
			return
		}
		err := r.reconcile(ctx, it)
		r.report(it, err)
		r.queue.done(it, err == nil)
	}
}

func (r *reconciler) reconcile(ctx context.Context, it item) error {
	switch it.kind {
	case api.NamespaceKind:
		return r.reconcileNamespace(ctx, it.key)
	case api.NodeKind:
		return r.clearNode(ctx, it.key.Name)
	}
	if r.orchestrated {
		return r.reconcileProgrammed(ctx, it.key)
	}
	return errors.Join(r.reconcileAllocation(ctx, it.key), r.reconcileSlices(ctx, it.key), r.reconcileProgrammed(ctx, it.key))
}

// report logs the first of a row of errors. That someone else was quicker, or
// that the store is away, is no news: the item is tried again.
func (r *reconciler) report(it item, err error) {
	expected := err == nil || errors.Is(err, context.Canceled)
	for _, e := range []error{store.ErrConflict, store.ErrExists, store.ErrNotFound, store.ErrUnavailable} {
		expected = expected || errors.Is(err, e)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.complained, it)
	}
	if !expected && !r.complained[it] {
		r.complained[it] = true
		r.log.Error("reconcile failed, will be tried again", "kind", it.kind.Name, "name", it.key.String(), "error", err)
	}
}
