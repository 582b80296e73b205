package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/dataplane/pod"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/store"
)

// journaled is what the journal keeps of a pod beside its addresses, so that a
// restarted agent knows the pod before the store answers.
type journaled struct {
	Network string                     `json:"network"`       // the CNI configuration's name
	UID     types.UID                  `json:"uid,omitempty"` // of the Pod
	NetNSID string                     `json:"netnsID"`       // see namespaceID
	MAC     plan.MAC                   `json:"mac"`
	MTU     int                        `json:"mtu"`
	Labels  map[string]string          `json:"labels,omitempty"`
	Ports   []api.WorkloadEndpointPort `json:"ports,omitempty"`
}

// waiter waits on the loop for a pod's part of the plan to be in the kernel.
type waiter struct {
	hostInterface string
	done          chan struct{}
}

// Attach implements cni.Attacher: it returns when the pod's policy is in the
// kernel and its interface is up, or with everything undone.
func (a *Agent) Attach(ctx context.Context, att cni.Attachment) (result cni.Attached, err error) {
	defer func(start time.Time) { a.metrics.observe("ADD", start, err) }(time.Now())
	a.awaitPlan(ctx)
	mtu, err := a.newPodMTU()
	if err != nil {
		return cni.Attached{}, err
	}
	id := ipam.ID(att.ID)
	if err := a.detaching.wait(ctx, id); err != nil {
		return cni.Attached{}, err
	}
	if err := a.onlyInterface(ctx, id); err != nil {
		return cni.Attached{}, err
	}
	link := pod.Attachment{
		NetNS: att.NetNS, PodInterface: att.IfName, ContainerID: att.ContainerID,
		HostInterface: pod.HostInterfaceName(att.ContainerID, att.IfName), MTU: mtu,
	}
	link.PodMAC, err = podMAC(att)
	if err != nil {
		return cni.Attached{}, err
	}
	had, err := a.lookUp(ctx, &att)
	if err != nil {
		return cni.Attached{}, err
	}
	if err := a.awaitHostPorts(ctx, att.Ports); err != nil {
		return cni.Attached{}, err
	}
	netns, err := namespaceID(att.NetNS)
	if err != nil {
		return cni.Attached{}, fmt.Errorf("%w: %w", cni.ErrNetNS, err)
	}
	extra, err := json.Marshal(journaled{
		Network: att.Network, UID: types.UID(att.UID), NetNSID: netns, MAC: link.PodMAC, MTU: link.MTU, Labels: att.Labels, Ports: att.Ports,
	})
	if err != nil {
		return cni.Attached{}, err
	}
	allocation, err := a.allocate(ctx, had, ipam.Request{
		ID: id, Namespace: att.Namespace, Pod: att.Pod, HostInterface: link.HostInterface, NetNS: att.NetNS,
		Want: att.Want, Extra: extra,
	})
	if errors.Is(err, ipam.ErrExhausted) {
		_ = a.do(a.running, a.surveyHost) // the host may have let addresses go
	}
	a.reportAddresses()
	a.reportJournal(err)
	if err != nil {
		if errors.Is(err, ipam.ErrExists) {
			return cni.Attached{}, fmt.Errorf("%w: %w", cni.ErrAttached, err)
		}
		return cni.Attached{}, err
	}
	for _, addr := range allocation.Addresses {
		link.Addresses = append(link.Addresses, netip.PrefixFrom(addr, addr.BitLen()))
	}

	err = pod.Attach(link)
	if err == nil {
		err = a.program(ctx, localOf(allocation))
	}
	if err != nil {
		a.takeDown(id)
		ctx, cancel := context.WithTimeout(a.running, undoPatience)
		defer cancel()
		return cni.Attached{}, errors.Join(err, a.detaching.wait(ctx, id))
	}
	a.publisher.attached(endpointOf(a.config.NodeName, allocation))
	return attached(link), nil
}

// onlyInterface refuses a second interface of a container. Both would have the
// pod's default route and its name in the store. One that is being taken down is
// waited for.
func (a *Agent) onlyInterface(ctx context.Context, id ipam.ID) error {
	for _, other := range a.ipam.List() {
		if other.ContainerID != id.ContainerID || other.IfName == id.IfName {
			continue
		}
		if !other.Leaving && !a.detaching.has(other.ID) {
			return fmt.Errorf("%w: container %s has %s: a container gets one interface from Twill", cni.ErrAttached, id.ContainerID, other.IfName)
		}
		if err := a.detaching.wait(ctx, other.ID); err != nil {
			return err
		}
	}
	return nil
}

// lookUp completes an attachment by what the store knows of the pod, where that
// is more than the runtime does: by its labels policy is chosen, which has to
// hold when the pod starts. What is followed does not tell: a pod is in it once
// it has an address.
//
// While the store is away, a pod that was here before is started anew; had are the
// addresses by which the other nodes know it.
func (a *Agent) lookUp(ctx context.Context, att *cni.Attachment) (had []netip.Addr, err error) {
	if !a.publisher.orchestrated || att.Pod == "" {
		return nil, nil
	}
	key := api.Key{Namespace: att.Namespace, Name: att.Pod}
	obj, err := a.store.Get(ctx, api.WorkloadEndpointKind, key)
	if errors.Is(err, store.ErrUnavailable) {
		if known, ok := a.podsHere.get(key); ok && att.UID == string(known.UID) {
			obj, err, had = known, nil, addressesOf(known)
		} else {
			err = fmt.Errorf("%w: %w", cni.ErrTryAgain, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the pod's labels are needed: %w", err)
	}
	w := obj.(*api.WorkloadEndpoint)
	if att.UID != "" && string(w.UID) != att.UID {
		return nil, fmt.Errorf("the pod's labels: pod %s/%s was replaced by another of its name", att.Namespace, att.Pod)
	}
	att.UID, att.Labels, att.Ports = string(w.UID), w.Labels, w.Spec.Ports
	return had, nil
}

func addressesOf(w *api.WorkloadEndpoint) (out []netip.Addr) {
	for _, text := range w.Spec.IPNetworks {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			out = append(out, prefix.Addr())
		}
	}
	return out
}

// allocate gives a pod addresses; those that it had, if there are any and they can
// be had again: the interface that they are of may still be being taken down.
func (a *Agent) allocate(ctx context.Context, had []netip.Addr, r ipam.Request) (ipam.Allocation, error) {
	if len(had) == 0 || len(r.Want) > 0 {
		return a.ipam.Allocate(ctx, r)
	}
	again := r
	again.Want = had
	al, err := a.ipam.Allocate(ctx, again)
	if errors.Is(err, ipam.ErrAddress) {
		return a.ipam.Allocate(ctx, r)
	}
	return al, err
}

// podsHere are the node's pods as the store told of them last.
type podsHere struct {
	mu   sync.Mutex
	pods map[api.Key]*api.WorkloadEndpoint
}

func (p *podsHere) put(w *api.WorkloadEndpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pods == nil {
		p.pods = map[api.Key]*api.WorkloadEndpoint{}
	}
	p.pods[api.KeyOf(w)] = w
}

// all lists the pods.
func (p *podsHere) all() []*api.WorkloadEndpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.pods))
}

func (p *podsHere) delete(key api.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pods, key)
}

func (p *podsHere) get(key api.Key) (*api.WorkloadEndpoint, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.pods[key]
	return w, ok
}

// awaitPlan waits a while for all policies to be in the kernel once: before, no pod
// may start.
func (a *Agent) awaitPlan(ctx context.Context) {
	select {
	case <-a.planned:
	case <-time.After(planPatience):
	case <-ctx.Done():
	}
}

// newPodMTU is unknown until all policies were seen: before, no pod may start, and
// the runtime tries again.
func (a *Agent) newPodMTU() (int, error) {
	mtu := a.podMTU.Load()
	if mtu == 0 && a.health.Has(health.NodeNameTaken) {
		return 0, fmt.Errorf("%w: another machine has the name of node %s: see the agent's log", cni.ErrTryAgain, a.config.NodeName)
	}
	if mtu == 0 {
		return 0, fmt.Errorf("%w: the agent is not yet in step with the store: see `twill status`", cni.ErrTryAgain)
	}
	return int(mtu), nil
}

// onLoop runs f on the loop and waits for it.
func (a *Agent) onLoop(ctx context.Context, f func()) error {
	done := make(chan struct{})
	if err := a.do(ctx, func() { f(); close(done) }); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// program has the pod's part of the plan made true.
func (a *Agent) program(ctx context.Context, l plan.Local) error {
	w := waiter{l.HostInterface, make(chan struct{})}
	if err := a.do(ctx, func() {
		a.planner.SetLocal(l)
		a.waiters = append(a.waiters, w)
	}); err != nil {
		return err
	}
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		var what string
		for _, c := range a.health.Conditions() {
			if c.Code == health.DataplaneWriteFailed {
				what = ": " + c.Detail
			}
		}
		return fmt.Errorf("the pod's policy did not get into the kernel in time%s: %w", what, ctx.Err())
	}
}

// wakeWaiters tells those whose pods are in the kernel. It runs on the loop.
func (a *Agent) wakeWaiters() {
	rest := a.waiters[:0]
	for _, w := range a.waiters {
		if a.planner.LocalPending(w.hostInterface) {
			rest = append(rest, w)
			continue
		}
		close(w.done)
	}
	a.waiters = rest
}

// podsWaitForRules says whether a pod that is being attached lacks its policy in
// the kernel.
func (a *Agent) podsWaitForRules() bool {
	for _, w := range a.waiters {
		if a.planner.LocalRulesPending(w.hostInterface) {
			return true
		}
	}
	return false
}

// reportJournal tells that the journal can't be written until it can.
func (a *Agent) reportJournal(err error) {
	if !errors.Is(err, ipam.ErrJournal) {
		return
	}
	a.health.Set(health.JournalWriteFailed, "", err.Error())
	if !a.tryingJournal.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer a.tryingJournal.Store(false)
		a.insist(a.log, "write the journal", a.ipam.TryJournal)
		a.health.Clear(health.JournalWriteFailed, "")
	}()
}

// Detach implements cni.Attacher. The caller does not wait for the kernel, which
// takes long to delete a pair of devices (RCU); the addresses stay taken until
// that is done.
func (a *Agent) Detach(ctx context.Context, of cni.ID) (err error) {
	defer func(start time.Time) { a.metrics.observe("DEL", start, err) }(time.Now())
	a.takeDown(ipam.ID(of))
	return nil
}

// takeDown has a pod taken down in the background. It is written down first: the
// runtime will be told that it happened, and never ask again. A journal that can't
// be written is no reason to keep the pod.
func (a *Agent) takeDown(id ipam.ID) {
	allocation, ok, err := a.ipam.Leave(id)
	a.reportJournal(err)
	if !ok {
		return
	}
	a.publisher.detached(api.Key{Namespace: allocation.Namespace, Name: allocation.Pod}, id, func() *api.WorkloadEndpoint {
		for _, other := range a.ipam.List() { // a container that has the pod's name, too
			if other.Namespace == allocation.Namespace && other.Pod == allocation.Pod && !other.Leaving {
				return endpointOf(a.config.NodeName, other)
			}
		}
		return nil
	})
	a.detaching.start(id, func() { a.undo(allocation) })
}

// goOnLeaving takes down what an earlier agent was taking down when it ended.
func (a *Agent) goOnLeaving() {
	for _, al := range a.ipam.List() {
		if al.Leaving {
			a.takeDown(al.ID)
		}
	}
}

// undo takes down a pod's device, then what was planned for it and its connections,
// then its addresses: the other way round a packet could pass without policy, or an
// address be in use twice.
func (a *Agent) undo(al ipam.Allocation) {
	log := a.log.With("pod", al.ID)
	a.insist(log, "remove a pod's device; its addresses stay taken", func() error { return pod.Detach(al.HostInterface) })
	// Detached from the request: it has to happen whatever becomes of that.
	if err := a.onLoop(a.running, func() { a.planner.DeleteLocal(al.HostInterface) }); err != nil {
		return // stopping: the next start compares journal and kernel
	}
	a.insist(log, "forget a pod's connections; its addresses stay taken", func() error { return a.forgetter.forget(al.Addresses) })
	a.insist(log, "release a pod's addresses", func() error {
		_, released, err := a.ipam.Release(al.ID)
		a.reportJournal(err)
		if released {
			a.reportStrays()
		}
		return err
	})
}

const (
	planPatience = 10 * time.Second // of an ADD, for an agent that has just started
	undoPatience = 10 * time.Second // that an ADD that failed waits for being undone
	undoRetry    = time.Second
)

// insist calls f until it succeeds or the agent stops: the runtime was told that
// it would happen.
func (a *Agent) insist(log *slog.Logger, what string, f func() error) {
	for complained := false; ; complained = true {
		err := f()
		if err == nil {
			if complained {
				log.Info(what + ": done")
			}
			return
		}
		if !complained {
			log.Error(what+": tried again until it is done", "error", err)
		}
		select {
		case <-time.After(undoRetry):
		case <-a.running.Done():
			return
		}
	}
}

// Check implements cni.Attacher. What is expected is what the runtime remembers: a
// plugin after this one may have changed it.
func (a *Agent) Check(_ context.Context, att cni.Attachment, prev cni.Attached) (err error) {
	defer func(start time.Time) { a.metrics.observe("CHECK", start, err) }(time.Now())
	allocation, ok := a.ipam.Get(ipam.ID(att.ID))
	if !ok || allocation.Leaving || a.detaching.has(allocation.ID) {
		return fmt.Errorf("%w: container %s has no interface %s from this node", cni.ErrUnknownContainer, att.ContainerID, att.IfName)
	}
	link := pod.Attachment{
		NetNS: att.NetNS, PodInterface: att.IfName, ContainerID: att.ContainerID, HostInterface: allocation.HostInterface,
		Addresses: prev.Addresses, MTU: prev.MTU,
	}
	if link.MTU == 0 { // until 1.1.0 it is not in the result
		link.MTU = journalOf(allocation).MTU
	}
	if prev.PodMAC != "" {
		if link.PodMAC, err = plan.ParseMAC(prev.PodMAC); err != nil {
			return fmt.Errorf("prevResult: %w", err)
		}
	}
	var routes []netip.Prefix
	for _, r := range prev.Routes {
		routes = append(routes, r.Destination)
	}
	return pod.Check(link, routes)
}

// GC implements cni.Attacher: what is not to be kept of a network is detached.
// Of what was adopted the network is not known; it goes when its namespace does.
func (a *Agent) GC(ctx context.Context, network string, keep []cni.ID) (err error) {
	defer func(start time.Time) { a.metrics.observe("GC", start, err) }(time.Now())
	kept := map[ipam.ID]bool{}
	for _, id := range keep {
		kept[ipam.ID(id)] = true
	}
	var errs []error
	for _, allocation := range a.ipam.List() {
		if journalOf(allocation).Network == network && !kept[allocation.ID] {
			errs = append(errs, a.Detach(ctx, cni.ID(allocation.ID)))
		}
	}
	return errors.Join(errs...)
}

// Status implements cni.Attacher.
func (a *Agent) Status(context.Context) error {
	_, err := a.newPodMTU()
	return errors.Join(err, a.ipam.Ready())
}
