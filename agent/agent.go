// Package agent is one node's loop: it watches intent, has it planned, makes the
// plan true in the kernel, attaches pods, and reports. It is the only writer of
// the node's network state.
//
// It never decides what the kernel should hold: that is plan's work.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/dataplane/conntrack"
	"github.com/twill-net/twill/dataplane/healthcheck"
	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/store"
)

// Agent is a node's agent. Use New and Run.
type Agent struct {
	config  Config
	log     *slog.Logger
	store   store.Store
	health  *health.Tracker
	metrics *metrics

	nft       *nft.Kernel
	route     *route.Kernel
	conntrack *conntrack.Kernel
	checks    *healthcheck.Server
	ipam      *ipam.Allocator
	publisher *publisher
	progress  progress
	detaching detachments
	forgetter forgetter
	podsHere  podsHere
	addresses addresses
	running   context.Context // ends with Run; for what outlives a request
	machine   identity        // holds the lease of the node's name
	held      chan struct{}   // closed when it does
	sightings sightings       // belongs to renewLease
	contest   contest
	podMTU    atomic.Int64 // of a pod that is attached now; 0: not all intent was seen yet

	carries       atomic.Bool // all intent was seen and is true in the kernel, or was once
	leavesCluster atomic.Bool // the node's object is being removed
	blocksKnown   atomic.Bool // the node's blocks were compared with the store
	tryingJournal atomic.Bool
	allKnown      chan struct{} // closed when all intent was seen
	planned       chan struct{} // closed when all intent was tried to be made true

	// The rest belongs to the loop.
	work     chan func()
	planner  *plan.Planner
	underlay underlay
	unsynced map[string]struct{} // what has to be known before anything is programmed
	drifts   uint64              // changes by other programs that were counted
	serves   bool                // Services are this agent's
	pools    map[string]*api.IPPool
	nodes    map[string][]netip.Addr // of the cluster, and their addresses
	waiters  []waiter
	troubled troubled
	onHost   map[ipam.Holder]struct{} // what of the host has addresses of the node's blocks
}

// WorkAtOnce bounds how many events are taken in before the plan is made true,
// so that a flood of them does not keep an ADD waiting.
const WorkAtOnce = 5000

// New opens the node's kernel and journal. The store stays the caller's to
// close.
func New(config Config, s store.Store, log *slog.Logger) (*Agent, error) {
	a := &Agent{
		config: config, log: log, store: s,
		health:   &health.Tracker{},
		work:     make(chan func(), WorkAtOnce),
		planner:  plan.NewPlanner(config.NodeName),
		checks:   healthcheck.New(log),
		unsynced: map[string]struct{}{}, serves: true, held: make(chan struct{}), sightings: sightings{},
		contest: newContest(), allKnown: make(chan struct{}), planned: make(chan struct{}),
		pools: map[string]*api.IPPool{}, nodes: map[string][]netip.Addr{}, progress: newProgress(), onHost: map[ipam.Holder]struct{}{},
	}
	a.metrics = newMetrics(a)
	a.publisher = newPublisher(s, config.NodeName, log)

	a.health.OnChange(a.publisher.nodeChanged)

	var err error
	if a.machine, err = thisMachine(); err != nil {
		return nil, err
	}
	host, err := route.ReadHost()
	if err != nil {
		return nil, err
	}
	if a.underlay.found, err = a.detectUnderlay(host); err != nil && (len(config.NodeIPs) > 0 || !a.publisher.orchestrated) {
		return nil, err // else the kubelet will say what the node's address is
	}
	if a.nft, err = nft.Open(log); err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	if a.route, err = route.Open(log); err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if err := os.MkdirAll(config.RunDir, 0o755); err != nil {
		return nil, err
	}
	if err := a.route.KeepOriginals(config.SysctlOriginals()); err != nil {
		return nil, err
	}
	if a.conntrack, err = conntrack.Open(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(config.StateDir, 0o700); err != nil {
		return nil, err
	}
	a.ipam, err = ipam.Open(filepath.Join(config.StateDir, plan.Journal), config.NodeName, ipam.Options{Store: s, Log: log, Survey: a.surveyBlock})
	if err != nil {
		return nil, err
	}
	if kept := a.ipam.Recovered(); kept != "" {
		a.health.Set(health.JournalRebuilt, "", "the damaged journal is kept as "+kept)
	}
	a.planner.SetUnderlay(a.underlay.found)
	a.reserve(host)
	a.planner.SetExternalIPRanges(config.ExternalIPs)
	return a, nil
}

// Run works until ctx ends. What is programmed stays: packets go on without the
// agent.
func (a *Agent) Run(ctx context.Context) error {
	defer a.close()
	if err := a.restorePods(); err != nil {
		return fmt.Errorf("restore pods: %w", err)
	}
	if err := a.installExecutable(); err != nil {
		return err
	}
	listener, err := cni.Listen(a.config.Socket())
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	a.running = ctx
	a.goOnLeaving()
	for _, kind := range followed {
		a.unsynced[kind.Plural] = struct{}{}
	}
	a.unsynced[whoServes] = struct{}{}
	a.unsynced[leaseHeld] = struct{}{}
	a.health.Set(health.NotSynced, "", "waiting for the first lists")
	for _, kind := range followed {
		g.Go(func() error { a.follow(ctx, kind); return nil })
	}
	drift, host, rules := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	drifted, hostChanged, rulesChanged := func() { wake(drift) }, func() { wake(host) }, func() { wake(rules) }
	g.Go(func() error { return ended(ctx, "watch nftables", a.nft.Watch(ctx, drifted, rulesChanged)) })
	g.Go(func() error { a.watchConflicts(ctx, rules); return nil })
	g.Go(func() error { return ended(ctx, "watch rtnetlink", a.route.Watch(ctx, drifted, hostChanged)) })
	g.Go(func() error { return ended(ctx, "serve CNI", cni.Serve(ctx, listener, a, a.log)) })
	g.Go(func() error { return ended(ctx, "serve metrics", a.metrics.serve(ctx, a.config.MetricsAddress)) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-a.allKnown: // before, a block might be claimed that the node's ranges exclude
			a.ipam.Keep(ctx, a.reportAddresses)
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-a.held: // before, the node's object may be another machine's
			a.publisher.run(ctx)
		}
		return nil
	})
	g.Go(func() error { return a.renewLease(ctx) })
	g.Go(func() error { a.settleContest(ctx); return nil })
	g.Go(func() error { a.followServiceProxy(ctx); return nil })
	g.Go(func() error { a.followServiceRanges(ctx); return nil })
	g.Go(func() error { a.loop(ctx, drift, host); return nil })
	a.publishNodeOnChange()
	return g.Wait()
}

// wake puts an element into a channel that has room for one.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ended turns the end of a part into an error unless the agent is stopping.
func ended(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return fmt.Errorf("%s: ended unexpectedly", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (a *Agent) close() {
	a.checks.Close()
	if err := a.ipam.Close(); err != nil {
		a.log.Error("close the journal", "error", err)
	}
}

// do runs f on the loop, and wakes it to make true what f changed.
func (a *Agent) do(ctx context.Context, f func()) error {
	select {
	case a.work <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// loop takes in what happened, a burst at a time, and makes the plan true.
func (a *Agent) loop(ctx context.Context, drift, host <-chan struct{}) {
	const minRetry, maxRetry = 100 * time.Millisecond, 5 * time.Second
	retryAfter := minRetry
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	// The kernel does not tell when most sysctls are changed, and within a second
	// they have to be mended.
	sysctls := time.NewTicker(750 * time.Millisecond)
	defer sysctls.Stop()
	drifted, isFirst := false, true
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-a.work:
			f()
			a.drain()
		case <-drift:
			drifted = true
		case <-host:
			a.followUnderlay()
			a.surveyHost()
		case <-sysctls.C:
			if a.underlay.lost {
				a.followUnderlay()
			}
			if !a.synced() || a.route.CheckSysctls(a.planner.Flush()) == 0 {
				continue
			}
		case <-retry.C:
		}
		if !a.synced() {
			continue
		}
		writes, done := a.apply(drifted)
		if seen := a.nft.Drifts() + a.route.Mended(); seen != a.drifts {
			a.drifts = seen
			a.metrics.drift.Inc()
			a.log.Warn("mended what another program changed in the kernel", "writes", writes)
		}
		drifted = false
		if isFirst {
			close(a.planned)
			go AfterFirstSync()
		}
		isFirst = false
		if done {
			if !a.carries.Swap(true) {
				a.installConflist()
				a.publishNodeOnChange()
			}
			retryAfter = minRetry
		} else {
			retry.Reset(retryAfter)
			retryAfter = min(2*retryAfter, maxRetry)
		}
	}
}

func (a *Agent) drain() {
	for range WorkAtOnce {
		select {
		case f := <-a.work:
			f()
		default:
			return
		}
	}
}

// synced says whether all intent has been seen. Before that nothing is
// programmed: half of the policies would be an invitation.
func (a *Agent) synced() bool { return len(a.unsynced) == 0 }

// apply makes the plan true, from which the kernel may have drifted, and says how
// many writes that took, and whether all of it is true now.
func (a *Agent) apply(drifted bool) (writes int, done bool) {
	start := time.Now()
	p := a.planner.Flush()
	a.podMTU.Store(int64(a.planner.PodMTU()))
	errs := map[string]string{}
	report := func(area string, writes int, err error) {
		a.metrics.writes.WithLabelValues(area).Add(float64(writes))
		if err != nil {
			errs[area] = err.Error()
		}
	}
	// Rules before links: a pod's device comes up when its policy is there.
	writes, err := a.nft.Apply(p)
	report("nftables", writes, err)
	if drifted && writes > 0 {
		conntrack.Doubt(p)
	}
	mended := false
	if err == nil || !a.podsWaitForRules() {
		n, err := a.route.Apply(p)
		writes += n
		err, mended = a.mendMissing(err)
		report("rtnetlink", n, err)
	}
	n, err := a.conntrack.Apply(p)
	report("conntrack", n, err)
	opened, err := a.checks.Apply(p)
	report("healthcheck", opened, err)
	if writes+n > 0 {
		a.metrics.apply.Observe(time.Since(start).Seconds())
	}
	a.health.Replace(health.DataplaneWriteFailed, errs)
	a.reportProblems()
	a.reportTroubled()
	a.wakeWaiters()
	if len(errs) == 0 {
		a.progress.nodes.Store(int64(a.planner.Nodes()))
		a.progress.applied()
	}
	return writes, len(errs) == 0 && !mended && len(a.troubled.missing) == 0
}

// reportProblems turns what the plan can't honour into conditions.
func (a *Agent) reportProblems() {
	byCode := map[health.Code]map[string]string{health.ObjectInvalid: {}, health.NoPathToNode: {}, health.PoolOverlap: {}, health.ServiceNotProgrammed: {}}
	for _, problem := range a.planner.Problems() {
		code := health.Code(problem.Code)
		if byCode[code] == nil {
			byCode[code] = map[string]string{}
		}
		byCode[code][problem.Subject] = problem.Detail
	}
	for code, details := range byCode {
		a.health.Replace(code, details)
	}
}
