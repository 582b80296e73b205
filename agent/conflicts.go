package agent

import (
	"context"
	"maps"
	"time"

	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/preflight"
)

const (
	// conflictsInterval is how often rules of other programs are judged of whose
	// changes the kernel does not tell: those of iptables-legacy.
	conflictsInterval = time.Minute
	// conflictsDelay is the least time from a change to a judgement: programs write
	// their rules in several transactions.
	conflictsDelay = 500 * time.Millisecond
	// conflictsShare bounds the work: a judgement is followed by at least this many
	// times as long without one.
	conflictsShare = 20
)

// watchConflicts reports, as long as ctx lasts, rules of other programs that drop
// what this node needs. changed says that such rules may have changed.
func (a *Agent) watchConflicts(ctx context.Context, changed <-chan struct{}) {
	judge := newConflictJudge(a)
	select {
	case <-a.planned:
	case <-ctx.Done():
		return
	}
	for {
		began := time.Now()
		judge.judge(ctx)
		took := time.Since(began)
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(conflictsInterval, conflictsShare*took)):
			continue
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(conflictsDelay, conflictsShare*took)):
		}
		select { // what came meanwhile is judged with it
		case <-changed:
		default:
		}
	}
}

// conflictJudge remembers what it reported, to log what is new.
type conflictJudge struct {
	agent *Agent
	last  map[string]string
}

func newConflictJudge(a *Agent) *conflictJudge { return &conflictJudge{agent: a} }

// judge looks at the rules in the network namespace of the calling thread.
func (j *conflictJudge) judge(ctx context.Context) {
	type node struct {
		underlay fabric.Underlay
		tunnels  []uint16
	}
	a, answer := j.agent, make(chan node, 1)
	if a.do(ctx, func() { answer <- node{a.underlay.found, a.planner.Tunnels()} }) != nil {
		return
	}
	var n node
	select {
	case n = <-answer:
	case <-ctx.Done():
		return
	}
	if n.underlay.Link == "" {
		return // its address is not known, which is a condition of its own
	}
	blocked, err := preflight.Conflicts(n.underlay, n.tunnels, a.publisher.orchestrated)
	if err != nil {
		a.log.Warn("the rules of other programs can't be read; conflicts with them are not reported", "error", err)
		return
	}
	now := map[string]string{}
	for _, b := range blocked {
		now[b.What] = b.By + " drops them"
	}
	a.health.Replace(health.PacketsDropped, now)
	if maps.Equal(now, j.last) {
		return
	}
	for what, how := range now {
		a.log.Warn("another program's rules drop packets that this node needs", "packets", what, "by", how)
	}
	if len(now) == 0 && len(j.last) > 0 {
		a.log.Info("no rules of other programs drop what this node needs any more")
	}
	j.last = now
}
