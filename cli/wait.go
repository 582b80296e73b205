package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/store"
)

const (
	defaultWait = 30 * time.Second
	waitPoll    = 100 * time.Millisecond
)

// waiting is the flag --wait, and what is to be waited for.
type waiting struct {
	timeout time.Duration // 0: don't wait
	written api.Programmed
}

func (w *waiting) register(cmd *cobra.Command, what string) {
	cmd.Flags().DurationVar(&w.timeout, "wait", 0, fmt.Sprintf("return when %s on every node whose agent is alive, or fail after this time (%s if none is given: --wait)", what, defaultWait))
	cmd.Flags().Lookup("wait").NoOptDefVal = defaultWait.String()
}

// add has a change of a kind waited for.
func (w *waiting) add(kind *api.Kind, version uint64) {
	if followedByAgents(kind) {
		w.written.Set(kind, max(version, w.written.Version(kind)))
	}
}

// followedByAgents says whether agents program anything by the kind.
func followedByAgents(kind *api.Kind) bool { return kind != api.LeaseKind }

// await returns when all that was added is in force.
func (w *waiting) await(ctx context.Context, s *Session, st store.Store, out io.Writer) error {
	if w.timeout <= 0 || len(w.written) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	tick := time.NewTicker(waitPoll)
	defer tick.Stop()
	var agents agentProgress
	for {
		now, err := w.look(ctx, st, s.now())
		switch {
		case err == nil:
			agents = now
		case ctx.Err() == nil:
			return err
		}
		if agents.done() {
			return agents.report(out)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ctx.Err()
			}
			return w.late(context.WithoutCancel(ctx), st, agents)
		}
	}
}

// agentProgress is what the agents' leases say. Each list holds names of nodes.
type agentProgress struct {
	ready, silent []string
	behind        map[string]string // node → in which way
}

func (p agentProgress) done() bool { return len(p.behind) == 0 && len(p.ready) > 0 }

func (p agentProgress) report(out io.Writer) error {
	_, err := fmt.Fprintf(out, "in force on %s\n", counted(len(p.ready), "node"))
	if len(p.silent) > 0 {
		_, err = fmt.Fprintf(out, "not waited for: %s (the agent is silent; the node keeps the rules that it has)\n", strings.Join(p.silent, ", "))
	}
	return err
}

// look reads the leases, which agents renew when they have programmed a change.
func (w *waiting) look(ctx context.Context, st store.Store, now time.Time) (agentProgress, error) {
	p := agentProgress{behind: map[string]string{}}
	leases, err := listOf[*coordinationv1.Lease](ctx, st, api.LeaseKind, api.LeaseNamespace)
	if err != nil {
		return p, err
	}
	for _, lease := range leases {
		node, ours := strings.CutPrefix(lease.Name, api.LeaseName(""))
		if !ours {
			continue
		}
		if _, wrong := agentState(lease, now); wrong == health.AgentSilent {
			p.silent = append(p.silent, node)
			continue
		}
		programmed, err := api.LeaseProgrammed(lease)
		switch behind := w.missing(programmed); {
		case err != nil:
			p.behind[node] = err.Error()
		case programmed == nil:
			p.behind[node] = "its agent has not said what it has programmed: it has just started, or is older than this command"
		case behind != "":
			p.behind[node] = behind
		default:
			p.ready = append(p.ready, node)
		}
	}
	return p, nil
}

// missing says what is not programmed yet, of one kind.
func (w *waiting) missing(programmed api.Programmed) string {
	for _, kind := range slices.Sorted(maps.Keys(w.written)) {
		if want := w.written[kind]; programmed[kind] < want {
			return fmt.Sprintf("it has programmed %s up to revision %d, not yet %d", kind, programmed[kind], want)
		}
	}
	return ""
}

// late is the error after the time has run out: each node that lags, with what its
// agent says is wrong.
func (w *waiting) late(ctx context.Context, st store.Store, p agentProgress) error {
	if len(p.behind) == 0 {
		return fmt.Errorf("not in force anywhere after %s: no agent is alive (`twill status`)", w.timeout)
	}
	var errs []error
	for _, node := range slices.Sorted(maps.Keys(p.behind)) {
		text := fmt.Sprintf("not in force on node %s after %s: %s", node, w.timeout, p.behind[node])
		if obj, err := st.Get(ctx, api.NodeKind, api.Key{Name: node}); err == nil {
			for _, c := range troublesOf(obj.(*corev1.Node), nodeStatus{}, "") {
				text += fmt.Sprintf("; %s: %s", c.Code, strings.ReplaceAll(c.Detail, "\n", ", "))
			}
		}
		errs = append(errs, errors.New(text))
	}
	return errors.Join(errs...)
}

// deletions finds out at which revision objects were deleted, which the answer to a
// deletion does not tell.
type deletions struct {
	revisions map[*api.Kind]string // from which on to watch
	keys      map[*api.Kind]map[api.Key]bool
}

// newDeletions is to be called before anything of these kinds is deleted.
func newDeletions(ctx context.Context, st store.Store, kinds []*api.Kind) (*deletions, error) {
	d := &deletions{revisions: map[*api.Kind]string{}, keys: map[*api.Kind]map[api.Key]bool{}}
	for _, kind := range kinds {
		list, err := st.List(ctx, kind, "")
		if err != nil {
			return nil, err
		}
		d.revisions[kind], d.keys[kind] = list.Revision, map[api.Key]bool{}
	}
	return d, nil
}

// add notes what was deleted.
func (d *deletions) add(kind *api.Kind, key api.Key) {
	if d != nil && d.keys[kind] != nil {
		d.keys[kind][key] = true
	}
}

// find adds the deletions to what is waited for.
func (d *deletions) find(ctx context.Context, st store.Store, w *waiting) error {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	for kind, keys := range d.keys {
		if err := d.findOf(ctx, st, w, kind, keys); err != nil {
			return err
		}
	}
	return nil
}

func (d *deletions) findOf(ctx context.Context, st store.Store, w *waiting, kind *api.Kind, keys map[api.Key]bool) error {
	if len(keys) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, ended := st.Watch(ctx, kind, d.revisions[kind])
	for e := range events {
		if e.Type != store.Deleted || !keys[api.KeyOf(e.Object)] {
			continue
		}
		w.add(kind, e.Reached)
		if delete(keys, api.KeyOf(e.Object)); len(keys) == 0 {
			return nil
		}
	}
	if err := ended(); err != nil {
		return err
	}
	key := slices.MinFunc(slices.Collect(maps.Keys(keys)), func(a, b api.Key) int { return strings.Compare(a.String(), b.String()) })
	return fmt.Errorf("%s %s is not gone after %s: a finalizer holds it", kind.Name, key, w.timeout)
}
