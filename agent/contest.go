package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/store"
)

// contest is about addresses of this node that other Nodes have, too.
type contest struct {
	wake chan struct{}
	// These belong to settleContest.
	sightings sightings
	lost      bool // a living node precedes this one

	mu     sync.Mutex
	others []plan.Contender
	claim  time.Time // with which this node has the addresses; zero: none
}

func newContest() contest {
	return contest{wake: make(chan struct{}, 1), sightings: sightings{}}
}

// followContest takes over which other Nodes have an address of this node. It runs
// on the loop.
func (a *Agent) followContest() {
	if !a.synced() {
		return
	}
	others, claim := a.planner.Contenders()
	c := &a.contest
	c.mu.Lock()
	changed := !slices.Equal(others, c.others)
	c.others = others
	switch {
	case len(others) == 0:
		c.claim = time.Time{}
	case c.claim.Before(claim):
		c.claim = claim // of this node's agent before a restart
	}
	c.mu.Unlock()
	if !changed {
		return
	}
	a.publishNodeOnChange()
	wake(c.wake)
}

// addressClaim is what the node's object says; unknown before all is synced.
func (a *Agent) addressClaim() (claim time.Time, known bool) {
	a.contest.mu.Lock()
	defer a.contest.mu.Unlock()
	return a.contest.claim, a.synced()
}

// settleContest claims this node's addresses where all Nodes that precede it are
// silent, and reports the Nodes that have them, too, until ctx ends.
func (a *Agent) settleContest(ctx context.Context) {
	for {
		a.contest.mu.Lock()
		others := slices.Clone(a.contest.others)
		a.contest.mu.Unlock()
		a.judgeContest(ctx, others)
		var again <-chan time.Time
		if len(others) > 0 {
			again = time.After(leaseDuration / 3)
		}
		select {
		case <-ctx.Done():
			return
		case <-a.contest.wake:
		case <-again:
		}
	}
}

func (a *Agent) judgeContest(ctx context.Context, others []plan.Contender) {
	first, newest := true, time.Now()
	shared, states := map[string][]string{}, map[string]string{}
	for _, o := range others {
		state, silent := a.silent(ctx, o.Node)
		first = first && (silent || !o.Precedes)
		if !newest.After(o.Claim) {
			newest = o.Claim.Add(time.Nanosecond)
		}
		shared[o.Node], states[o.Node] = append(shared[o.Node], o.Addr.String()), state
	}
	details := map[string]string{}
	for node, addrs := range shared {
		if first { // else the node that has the address reports
			details[node] = fmt.Sprintf("it has %s, too; %s, and packets to it go to node %s", strings.Join(addrs, " and "), states[node], a.config.NodeName)
		}
	}
	if !first && !a.contest.lost {
		a.log.Error("another node has this node's address and gets its packets: give one of the two hosts another address", "states", states)
	}
	a.contest.lost = !first
	a.health.Replace(health.NodeAddressTaken, details)
	if !first || !slices.ContainsFunc(others, func(o plan.Contender) bool { return o.Precedes }) {
		return
	}
	a.contest.mu.Lock()
	a.contest.claim = newest
	a.contest.mu.Unlock()
	// The loop gone means that the agent is stopping.
	_ = a.do(ctx, a.publishNodeOnChange)
}

// silent says whether a node's agent does not renew its lease. An agent that ran on
// this machine under another name can't: only one has the journal of addresses.
func (a *Agent) silent(ctx context.Context, node string) (state string, silent bool) {
	got, err := a.store.Get(ctx, api.LeaseKind, api.Key{Namespace: api.LeaseNamespace, Name: api.LeaseName(node)})
	if errors.Is(err, store.ErrNotFound) {
		return "no agent of it was seen", true
	}
	if err != nil {
		return "whether its agent lives is unknown", false
	}
	lease := got.(*coordinationv1.Lease)
	switch holder := leaseHolder(lease); {
	case holder.same(a.machine):
		return "its agent ran on this machine", true
	case !a.contest.sightings.living(lease, time.Now()):
		return "its agent is silent", true
	default:
		return fmt.Sprintf("its agent lives, on machine %s", holder.host()), false
	}
}
