package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

// tape records what a handler was told, as text.
type tape struct {
	mu    sync.Mutex
	lines []string
}

func (p *tape) handler() store.Handler {
	add := func(format string, args ...any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.lines = append(p.lines, fmt.Sprintf(format, args...))
	}
	return store.Handler{
		Put:       func(obj api.Object) { add("put %s %s", obj.GetName(), obj.GetLabels()["v"]) },
		Deleted:   func(key api.Key) { add("deleted %s", key) },
		Synced:    func() { add("synced") },
		Connected: func(up bool, err error) { add("connected %v %v", up, err != nil) },
	}
}

// want checks what was told since the last call.
func (p *tape) want(t *testing.T, lines ...string) {
	t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if diff := cmp.Diff(lines, p.lines); diff != "" {
		t.Error(diff)
	}
	p.lines = nil
}

func node(name, v string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"v": v}}}
}

// put creates or changes a node.
func put(t *testing.T, s store.Store, name, v string) {
	t.Helper()
	obj, err := s.Get(t.Context(), api.NodeKind, api.Key{Name: name})
	if err != nil {
		_, err = s.Create(t.Context(), node(name, v))
	} else {
		obj.SetLabels(map[string]string{"v": v})
		_, err = s.Update(t.Context(), obj)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, s store.Store, name string) {
	t.Helper()
	if err := s.Delete(t.Context(), api.NodeKind, api.Key{Name: name}, ""); err != nil {
		t.Fatal(err)
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		put(t, s, "a", "1")
		put(t, s, "b", "1")
		p := &tape{}
		go store.Follow(t.Context(), s, api.NodeKind, p.handler())
		p.want(t, "connected true false", "put a 1", "put b 1", "synced")
		put(t, s, "a", "2")
		remove(t, s, "b")
		p.want(t, "put a 2", "deleted b")

		// A stream that breaks while the store is well is nobody's business.
		s.BreakWatches()
		put(t, s, "c", "1")
		p.want(t)
		time.Sleep(time.Second)
		p.want(t, "put c 1")

		// An outage is told, and takes nothing away.
		s.SetDown(true)
		time.Sleep(time.Hour)
		p.want(t, "connected false true")
		s.SetDown(false)
		put(t, s, "a", "3")
		time.Sleep(time.Minute)
		p.want(t, "connected true false", "put a 3")

		// After compaction only what differs is delivered, what is gone first.
		s.BreakWatches()
		put(t, s, "d", "1")
		put(t, s, "a", "4")
		remove(t, s, "c")
		s.Compact()
		time.Sleep(time.Minute)
		p.want(t, "deleted c", "put a 4", "put d 1")
	})
}

func TestFollowRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		put(t, s, "a", "1")
		put(t, s, "b", "1")
		backup := s.Backup()
		p := &tape{}
		go store.Follow(t.Context(), s, api.NodeKind, p.handler())
		p.want(t, "connected true false", "put a 1", "put b 1", "synced")
		put(t, s, "c", "1")
		put(t, s, "b", "2")
		p.want(t, "put c 1", "put b 2")
		s.Restore(backup)
		put(t, s, "d", "9") // has the resourceVersion that c had
		time.Sleep(time.Minute)
		p.want(t, "deleted c", "put a 1", "put b 1", "put d 9")
	})
}

// TestFollowWaitsForWhatIsWrittenAgain has somebody who writes again what the
// backup lacks, before the consumer lists.
func TestFollowWaitsForWhatIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		put(t, s, "a", "1")
		backup := s.Backup()
		p := &tape{}
		h := p.handler()
		h.Patient, h.Restored = true, func() { put(t, s, "b", "1") }
		go store.Follow(t.Context(), s, api.NodeKind, h)
		put(t, s, "b", "1")
		put(t, s, "c", "1")
		synctest.Wait()
		p.lines = nil
		s.Restore(backup)
		time.Sleep(store.RestoreGrace)
		p.want(t)
		time.Sleep(time.Second)
		p.want(t, "deleted c", "put a 1", "put b 1")
	})
}

func TestFollowUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		put(t, s, "a", "1")
		p := &tape{}
		go store.Follow(t.Context(), s, api.NodeKind, p.handler())
		p.want(t, "connected true false", "put a 1", "synced")
		s.Corrupt(api.NodeKind, api.Key{Name: "a"})
		s.Corrupt(api.NodeKind, api.Key{Name: "never-seen"})
		s.BreakWatches()
		s.Compact()
		time.Sleep(time.Minute)
		p.want(t)
		remove(t, s, "a")
		remove(t, s, "never-seen")
		p.want(t, "deleted a")
	})
}

// pager is a store whose lists come in pages of one object; the one that broken
// counts down to is the last before the list breaks.
type pager struct {
	*memory.Store
	lists, broken int
	atBreak       func()
}

func (p *pager) Pages(ctx context.Context, kind *api.Kind, take func([]api.Object)) (store.List, error) {
	p.lists++
	list, err := p.Store.List(ctx, kind, "")
	if err != nil {
		return list, err
	}
	for _, obj := range list.Items {
		take([]api.Object{obj})
		if p.broken--; p.broken == 0 {
			p.atBreak()
			return store.List{}, store.ErrUnavailable
		}
	}
	list.Items = nil
	return list, nil
}

func TestFollowPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &pager{Store: memory.New()}
		put(t, s, "a", "1")
		put(t, s, "b", "1")
		p := &tape{}
		go store.Follow(t.Context(), s, api.NodeKind, p.handler())
		p.want(t, "connected true false", "put a 1", "put b 1", "synced")
		put(t, s, "c", "1")
		p.want(t, "put c 1")

		// What is known is held against a whole list.
		s.BreakWatches()
		remove(t, s, "a")
		s.Compact()
		time.Sleep(time.Minute)
		p.want(t, "deleted a")
		if s.lists != 1 {
			t.Errorf("%d lists in pages, want the first alone", s.lists)
		}
	})
}

// TestFollowBrokenPages has a first list that breaks: what it gave and what is
// gone when the next one comes is deleted, and nothing is synced before.
func TestFollowBrokenPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &pager{Store: memory.New(), broken: 2}
		for _, name := range []string{"a", "b", "c"} {
			put(t, s, name, "1")
		}
		s.atBreak = func() { remove(t, s, "b") }
		p := &tape{}
		go store.Follow(t.Context(), s, api.NodeKind, p.handler())
		time.Sleep(time.Minute)
		p.want(t, "connected true false", "put a 1", "put b 1", "connected false true",
			"connected true false", "deleted b", "put a 1", "put c 1", "synced")
	})
}

// calls counts the attempts that Follow makes, and when.
type calls struct {
	*memory.Store
	mu sync.Mutex
	at []time.Time
}

func (c *calls) List(ctx context.Context, kind *api.Kind, namespace string) (store.List, error) {
	c.mu.Lock()
	c.at = append(c.at, time.Now())
	c.mu.Unlock()
	return c.Store.List(ctx, kind, namespace)
}

func TestFollowBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &calls{Store: memory.New()}
		c.SetDown(true)
		p := &tape{}
		go store.Follow(t.Context(), c, api.NodeKind, p.handler())
		time.Sleep(time.Minute)
		p.want(t, "connected false true")
		c.mu.Lock()
		defer c.mu.Unlock()
		var waits []time.Duration
		for i := range c.at[1:] {
			waits = append(waits, c.at[i+1].Sub(c.at[i]))
		}
		limit := 100 * time.Millisecond
		for i, wait := range waits {
			if wait < limit/2 || wait > limit {
				t.Errorf("wait %d is %s, want %s to %s", i, wait, limit/2, limit)
			}
			limit = min(2*limit, 5*time.Second)
		}
		if last := waits[len(waits)-3:]; last[0] == last[1] && last[1] == last[2] {
			t.Errorf("no jitter: %v", last)
		}
	})
}

// faults makes watches fail in an endless row.
type faults struct {
	*calls
	err error
}

func (f *faults) Watch(context.Context, *api.Kind, string) (<-chan store.Event, func() error) {
	ch := make(chan store.Event)
	close(ch)
	return ch, func() error { return f.err }
}

// TestFollowSparesTheStore has a store whose watches always need a new list.
func TestFollowSparesTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faults{&calls{Store: memory.New()}, store.ErrCompacted}
		p := &tape{}
		go store.Follow(t.Context(), f, api.NodeKind, p.handler())
		time.Sleep(time.Minute)
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := len(f.at); n > 30 {
			t.Errorf("%d lists in a minute", n)
		}
	})
}

// TestFollowNeverInventsDeletes follows through random faults and compares in
// the end.
func TestFollowNeverInventsDeletes(t *testing.T) {
	for seed := range 20 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := memory.New()
				p := &tape{}
				go store.Follow(t.Context(), s, api.NodeKind, p.handler())
				alive := map[string]bool{}
				random := uint64(seed*7919 + 1)
				for range 200 {
					random = random*6364136223846793005 + 1442695040888963407
					name := fmt.Sprint("n", random>>60)
					switch random >> 40 % 10 {
					case 0:
						s.BreakWatches()
					case 1:
						s.Compact()
					case 2:
						s.SetDown(true)
						time.Sleep(time.Duration(random>>33%3000) * time.Millisecond)
						s.SetDown(false)
					case 3, 4:
						if alive[name] {
							remove(t, s, name)
							delete(alive, name)
						}
					default:
						put(t, s, name, fmt.Sprint(random>>50))
						alive[name] = true
					}
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				p.check(t, s)
			})
		})
	}
}

// check plays the tape and compares the end with the store.
func (p *tape) check(t *testing.T, s store.Store) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := map[string]string{}
	for _, line := range p.lines {
		fields := append(strings.Fields(line), "", "")
		switch fields[0] {
		case "put":
			state[fields[1]] = fields[2]
		case "deleted":
			if _, ok := state[fields[1]]; !ok {
				t.Errorf("%s was deleted and is not known", fields[1])
			}
			delete(state, fields[1])
		}
	}
	list, err := s.List(t.Context(), api.NodeKind, "")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, obj := range list.Items {
		want[obj.GetName()] = obj.GetLabels()["v"]
	}
	if diff := cmp.Diff(want, state); diff != "" {
		t.Error(diff)
	}
	if n := slices.Index(p.lines, "synced"); n < 0 || slices.Contains(p.lines[n+1:], "synced") {
		t.Error("synced not once")
	}
}

// TestFollowReached: what was reached never runs ahead of what was delivered, and
// takes in deletions, also those that only a list shows.
func TestFollowReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		put(t, s, "a", "1") // resourceVersion 2
		p := &tape{}
		h := p.handler()
		h.Reached = func(version uint64) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.lines = append(p.lines, fmt.Sprint("reached ", version))
		}
		go store.Follow(t.Context(), s, api.NodeKind, h)
		p.want(t, "connected true false", "put a 1", "reached 2", "synced", "reached 2")
		put(t, s, "b", "1")
		remove(t, s, "b")
		p.want(t, "put b 1", "reached 3", "deleted b", "reached 4")
		s.BreakWatches()
		remove(t, s, "a")
		s.Compact()
		time.Sleep(time.Minute)
		p.want(t, "deleted a", "reached 5", "reached 5")
	})
}
