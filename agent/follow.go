package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/store"
)

// followed are the kinds of intent that a node's plan depends on.
var followed = []*api.Kind{
	api.NamespaceKind, api.NodeKind, api.FabricConfigurationKind, api.IPPoolKind, api.IPAMBlockKind,
	api.WorkloadEndpointKind, api.ServiceKind, api.EndpointSliceKind, api.NetworkPolicyKind,
}

// leaseHeld is known when this machine holds the lease of the node's name.
const leaseHeld = "lease"

// follow keeps the planner in step with one kind until ctx ends.
func (a *Agent) follow(ctx context.Context, kind *api.Kind) {
	store.Follow(ctx, a.store, kind, store.Handler{
		Put: func(obj api.Object) {
			a.do(ctx, func() { a.put(obj) })
		},
		Deleted: func(key api.Key) {
			a.do(ctx, func() { a.deleted(kind, key) })
		},
		Synced: func() {
			a.do(ctx, func() { a.known(ctx, kind.Plural) })
		},
		Reached: func(version uint64) {
			a.do(ctx, func() { a.progress.received[kind] = version })
		},
		Restored: func() { a.restored(ctx, kind) },
		Patient:  true,
		Connected: func(ok bool, err error) {
			if ok {
				a.health.Clear(health.StoreUnreachable, kind.Plural)
			} else {
				a.health.Set(health.StoreUnreachable, kind.Plural, err.Error())
			}
		},
	})
}

// known takes in that something is known which the plan depends on; the last of
// it begins the agent's work. It runs on the loop.
func (a *Agent) known(ctx context.Context, what string) {
	if _, waited := a.unsynced[what]; !waited {
		return
	}
	delete(a.unsynced, what)
	if a.synced() {
		a.surveyHost()
		close(a.allKnown)
		a.followContest()
		a.followUnderlay() // the addresses of the store are known now
		a.health.Clear(health.NotSynced, "")
		a.log.Info("in step with the store", "node", a.config.NodeName)
		go a.confirmBlocks(ctx)
	}
}

// restored publishes again what only this node knows: the backup lacks what came
// since. It is called for each kind.
func (a *Agent) restored(ctx context.Context, kind *api.Kind) {
	a.do(ctx, func() { a.progress.received[kind] = 0 }) // resourceVersions count on from the backup's
	if kind != api.NodeKind {
		return
	}
	a.log.Warn("the store was put back from a backup: this node publishes anew, and what the store says holds later", "later", store.RestoreGrace)
	a.publisher.everything()
	go a.confirmBlocks(ctx)
}

func (a *Agent) put(obj api.Object) {
	a.planner.Put(obj)
	switch o := obj.(type) {
	case *api.IPPool:
		a.pools[o.Name] = o
		a.setPools()
	case *api.FabricConfiguration:
		a.publishNodeOnChange()
	case *corev1.Node:
		a.ipam.SetWanted(o.Name, api.NodeWants(o))
		a.holdNode(o.Name, api.NodeAddresses(o))
		a.followContest()
		if o.Name == a.config.NodeName {
			a.ipam.SetNode(o.Labels, a.rangesOf(o))
			a.leavesCluster.Store(leaves(o))
			a.nodeTold(o)
		}
	case *api.IPAMBlock:
		owner, _ := o.Owner()
		if prefix, err := netip.ParsePrefix(o.Spec.CIDR); err == nil {
			a.ipam.Heard(o.Name, prefix, owner)
		}
		if owner != a.config.NodeName && a.ownsBlock(o.Name) {
			go a.confirmBlocks(a.running) // it is lost
		}
	case *api.WorkloadEndpoint:
		if o.Spec.Node == a.config.NodeName {
			a.identify(o)
			a.noteCutOff(o)
			a.podsHere.put(o)
			a.publisher.observe(o)
		} else {
			a.podsHere.delete(api.KeyOf(o))
		}
		a.ipam.Hold(ipam.Holder{Pod: api.KeyOf(o)}, addressesOf(o))
	}
}

func (a *Agent) deleted(kind *api.Kind, key api.Key) {
	a.planner.Delete(kind, key)
	switch kind {
	case api.IPPoolKind:
		delete(a.pools, key.Name)
		a.setPools()
	case api.FabricConfigurationKind:
		a.publishNodeOnChange()
	case api.NodeKind:
		a.ipam.SetWanted(key.Name, nil)
		a.holdNode(key.Name, nil)
		a.followContest()
		if key.Name == a.config.NodeName {
			a.publishNodeOnChange()
		}
	case api.WorkloadEndpointKind:
		a.podsHere.delete(key)
		delete(a.troubled.cutOff, key)
		a.ipam.Hold(ipam.Holder{Pod: key}, nil)
		a.publisher.gone(key)
	case api.IPAMBlockKind:
		a.ipam.HeardGone(key.Name)
		// Somebody took a block back that pods here have addresses of, such as
		// by deleting this node's object: it is claimed again.
		if a.ownsBlock(key.Name) {
			go a.confirmBlocks(a.running)
		}
	}
}

// ownsBlock says whether a block is this node's by its journal.
func (a *Agent) ownsBlock(name string) bool {
	return slices.ContainsFunc(a.ipam.Blocks(), func(b ipam.Block) bool { return ipam.BlockName(b.Prefix) == name })
}

// confirmBlocks compares the node's blocks with the store's. What the store says
// is another node's by now is given up. The node's own object goes before: of a
// node without one the controller clears the blocks away.
func (a *Agent) confirmBlocks(ctx context.Context) {
	for ctx.Err() == nil {
		err := a.publisher.ensureNode(ctx)
		var lost []netip.Prefix
		if err == nil {
			lost, err = a.ipam.ConfirmBlocks(ctx)
		}
		if err == nil {
			for _, prefix := range lost {
				a.log.Error("a block of this node is another's by now and was given up", "block", prefix)
			}
			a.blocksKnown.Store(true)
			a.reportStrays()
			return
		}
		a.log.Debug("confirm blocks later", "error", err)
		store.Pause(ctx, a.store, time.Second)
	}
}

// reportStrays tells of pods whose addresses lead to another node.
func (a *Agent) reportStrays() {
	if !a.blocksKnown.Load() {
		return // after a start with a damaged journal they all seem to
	}
	strays := map[string]string{}
	for _, al := range a.ipam.Strays() {
		var texts []string
		for _, addr := range al.Addresses {
			texts = append(texts, addr.String())
		}
		strays[al.Namespace+"/"+al.Pod] = fmt.Sprintf("has %s, from a block that is not %s's any more", strings.Join(texts, " and "), a.config.NodeName)
	}
	a.health.Replace(health.BlockLost, strays)
}

func (a *Agent) setPools() {
	pools := make([]*api.IPPool, 0, len(a.pools))
	for _, p := range a.pools {
		pools = append(pools, p)
	}
	// A pool that can't be used is listed among the planner's problems.
	_ = a.ipam.SetPools(pools)
}

// addresses is what was reported of the node's addresses last.
type addresses struct {
	mu    sync.Mutex
	wants []netip.Prefix
}

// reportAddresses brings the condition PoolExhausted up to date, and has other
// nodes asked for blocks that this node needs.
func (a *Agent) reportAddresses() {
	a.addresses.mu.Lock()
	if err := a.ipam.Exhausted(); err != nil {
		a.health.Set(health.PoolExhausted, "", err.Error())
	} else {
		a.health.Clear(health.PoolExhausted, "")
	}
	wants := a.ipam.Wanted()
	changed := !slices.Equal(wants, a.addresses.wants)
	a.addresses.wants = wants
	a.addresses.mu.Unlock()
	if changed {
		_ = a.do(a.running, a.publishNodeOnChange) // fails when the agent stops
	}
}

// wanted is what was reported last.
func (a *addresses) wanted() []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wants
}
