package ipam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

// crashed is the panic with which an agent ends at a crash point: before or
// after each write of its journal, and each call of the store.
type crashed struct{}

// crashPoints are the sorts of crash points.
var crashPoints = []string{
	"before the journal's addresses are written", "after the journal's addresses were written",
	"before the journal's blocks are written", "after the journal's blocks were written",
	"before a list of the store", "before a read of the store",
	"before a block is claimed in the store", "after a block was claimed in the store",
	"before a block is released in the store", "after a block was released in the store",
}

// bomb ends one agent at one of its crash points.
type bomb struct {
	left int    // crash points until then; negative: never
	last string // where it went off
}

func (b *bomb) at(point string) {
	if b.left < 0 {
		return
	}
	if b.left--; b.left < 0 {
		b.last = point
		panic(crashed{})
	}
}

// survives runs an agent's operation and says whether the agent lived.
func (b *bomb) survives(operation func()) (lived bool) {
	defer func() {
		b.left = -1
		if r := recover(); r != nil {
			if _, ok := r.(crashed); !ok {
				panic(r)
			}
			lived = false
		}
	}()
	operation()
	return true
}

// mortalStore is the store as one agent sees it. Sometimes the store makes a
// change and then says that it is unreachable, as a network does.
type mortalStore struct {
	*memory.Store
	world *world
	*bomb
}

func (s mortalStore) lose() error {
	if !s.world.steady && s.world.random.IntN(20) == 0 {
		return fmt.Errorf("%w: the answer was lost", store.ErrUnavailable)
	}
	return nil
}

func (s mortalStore) Get(ctx context.Context, kind *api.Kind, key api.Key) (api.Object, error) {
	s.at("before a read of the store")
	return s.Store.Get(ctx, kind, key)
}

func (s mortalStore) List(ctx context.Context, kind *api.Kind, namespace string) (store.List, error) {
	s.at("before a list of the store")
	return s.Store.List(ctx, kind, namespace)
}

func (s mortalStore) Create(ctx context.Context, obj api.Object) (api.Object, error) {
	s.at("before a block is claimed in the store")
	made, err := s.Store.Create(ctx, obj)
	s.at("after a block was claimed in the store")
	return made, errors.Join(err, s.lose())
}

func (s mortalStore) Delete(ctx context.Context, kind *api.Kind, key api.Key, version string) error {
	s.at("before a block is released in the store")
	err := s.Store.Delete(ctx, kind, key, version)
	s.at("after a block was released in the store")
	return errors.Join(err, s.lose())
}

// mortalJournal is a journal whose process may die around each write. It keeps
// the file as it was synced last, which is what a power failure may leave.
type mortalJournal struct {
	*journal
	node *worldNode
}

func (j mortalJournal) apply(c change) error {
	what := "addresses"
	if len(c.NewBlocks)+len(c.OldBlocks) > 0 {
		what = "blocks"
	}
	j.node.at("before the journal's " + what + " are written")
	before := j.journal.size
	if j.journal.limit > growth {
		j.journal.limit -= growth - 1000 // it begins again now and then
	}
	err := j.journal.apply(c)
	if what == "blocks" {
		j.node.keepSynced()
	} else if j.journal.size < before {
		j.node.keepSynced()
		line, _, _ := bytes.Cut(j.node.synced, []byte{'\n'})
		j.node.synced = append(line, '\n')
	}
	j.node.at("after the journal's " + what + " were written")
	return err
}

func (n *worldNode) keepSynced() {
	var err error
	if n.synced, err = os.ReadFile(n.path); err != nil {
		panic(err)
	}
}

// powerFailure leaves of the journal each page as it was synced last or as it
// was written since.
func (n *worldNode) powerFailure(random *rand.Rand) error {
	const page = 4096
	now, err := os.ReadFile(n.path)
	if err != nil {
		return err
	}
	if random.IntN(4) == 0 {
		now = now[:min(len(now), len(n.synced))]
	}
	for at := 0; at+page <= min(len(now), len(n.synced)); at += page {
		if random.IntN(2) == 0 {
			copy(now[at:at+page], n.synced[at:])
		}
	}
	return os.WriteFile(n.path, now, 0o600)
}

// journalDir is a directory for journals, in memory where that can be: what is
// tested are the writes, and not how long the disk takes to sync thousands.
func journalDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "twill-ipam")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestCrashAtEveryStep lets one agent do all that it does, and crash at its
// first crash point, at its second, and so on through the last. While it is down
// another node takes all addresses that it can have. Then it starts again, and no
// address is lost or given out twice.
func TestCrashAtEveryStep(t *testing.T) {
	for _, machine := range []bool{false, true} {
		points := map[string]int{}
		for n := 0; ; n++ {
			w := newWorld(t, uint64(n), 2, "10.0.0.0/26", 62)
			w.random = rand.New(rand.NewPCG(1, 1)) // the same life each time
			w.steady = true
			node := w.nodes[0]
			node.left = n
			if lived := node.survives(func() { w.life(node) }); lived {
				t.Logf("%d crash points: %v", n, points)
				if n < 80 || len(points) != len(crashPoints) {
					t.Errorf("%d crash points of %d sorts, want all %d sorts", n, len(points), len(crashPoints))
				}
				w.end()
				break
			}
			points[node.last]++
			w.crash(node, machine)
			for refused := 0; refused < 2; refused++ { // takes all that is free
				for w.attach(w.nodes[1]) {
				}
			}
			w.restart(node)
			w.gone(w.nodes[1])
			_, err := w.nodes[1].allocator.Reconcile(nil)
			w.must(err)
			w.life(w.nodes[1])
			w.life(node)
			w.end()
		}
	}
}

// life is all that an allocator does: it fills more than a block, gives part of
// it back, takes a wanted address, adopts, releases what is empty, confirms.
func (w *world) life(n *worldNode) {
	for range 16 {
		w.attach(n)
	}
	for range 14 {
		w.detach(n)
	}
	w.must(n.allocator.prepare(w.t.Context()))
	_, _, err := n.allocator.releaseUnneeded(w.t.Context(), 0)
	w.must(err)
	w.must(w.confirm(n))
	for range 3 {
		w.attach(n)
	}
	w.gone(n)
	_, err = n.allocator.Reconcile(nil)
	w.must(err)
	w.adopt(n)
	_, _, err = n.allocator.releaseUnneeded(w.t.Context(), 0)
	w.must(err)
}

// adopt finds an interface that the journal does not know, as after its loss.
func (w *world) adopt(n *worldNode) {
	id := ID{fmt.Sprint("found", w.serial), "eth0"}
	al, ok := w.allocate(n, request(id.ContainerID))
	if !ok {
		return
	}
	// The journal forgets it, while the interface is there.
	_, _, err := n.allocator.Release(id)
	w.must(err)
	w.attached(n, id, al)
	report, err := n.allocator.Reconcile(n.live())
	w.must(err)
	if len(report.Conflicts) > 0 {
		w.t.Fatalf("%s: %v", n.name, report.Conflicts)
	}
	if _, _, err := n.allocator.Identify(id, "default", "found", nil); err != nil {
		w.t.Fatal(err)
	}
}
