package agent

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// The lease is renewed early when a change that people make is in the kernel, so
// that `twill apply --wait` hears of it. Per node the time between two renewals is
// at least minRenewal, and renewalPerNode for each node of the cluster: all agents
// together write the store at most 200 times a second, however many there are.
const (
	minRenewal     = 200 * time.Millisecond
	renewalPerNode = 5 * time.Millisecond
)

// progress is how far the kernel has got with what the store says.
type progress struct {
	received map[*api.Kind]uint64 // resourceVersion; belongs to the loop
	nodes    atomic.Int64         // of the cluster

	mu         sync.Mutex
	programmed api.Programmed
	news       chan struct{} // has one element when the lease is to be renewed early
}

func newProgress() progress {
	return progress{received: map[*api.Kind]uint64{}, news: make(chan struct{}, 1)}
}

// applied notes that all that was received is in the kernel. It runs on the loop.
func (p *progress) applied() {
	p.mu.Lock()
	defer p.mu.Unlock()
	early := false
	for kind, version := range p.received {
		if p.programmed.Version(kind) != version {
			p.programmed.Set(kind, version)
			early = early || kind.WrittenByPeople()
		}
	}
	if !early {
		return
	}
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// now is what the kernel has.
func (p *progress) now() api.Programmed {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.programmed)
}

// interval is the least time between two renewals of the lease.
func (p *progress) interval() time.Duration {
	return max(minRenewal, time.Duration(p.nodes.Load())*renewalPerNode)
}

// pause returns when the lease is to be renewed again, which was last tried at the
// given time; false if ctx ended.
func (p *progress) pause(ctx context.Context, s store.Store, last time.Time) bool {
	pause, end := context.WithCancel(ctx)
	defer end()
	go func() {
		select {
		case <-p.news:
		case <-pause.Done():
			return
		}
		early := time.NewTimer(p.interval() - time.Since(last))
		defer early.Stop()
		select {
		case <-early.C:
			end()
		case <-pause.Done():
		}
	}()
	store.Pause(pause, s, leaseDuration/3)
	return ctx.Err() == nil
}
