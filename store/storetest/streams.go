package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

func testWatch(t *testing.T, server Server) {
	s, other := server.Open(t), server.Open(t)
	empty := list(t, s, api.NetworkPolicyKind, "")
	w := watch(t, s, api.NetworkPolicyKind, empty.Revision)
	if first := <-w.events; first.Type != store.Bookmark || first.Object != nil || first.Revision == "" {
		t.Fatalf("the first event is %+v", first)
	}
	one := create(t, other, policy("a", "one"))
	create(t, other, pool("one")) // another kind
	event := w.want("put a/one")
	if event.Object.GetResourceVersion() != one.ResourceVersion || event.Object.GetUID() != one.UID {
		t.Errorf("event %+v, created %+v", event.Object, one.ObjectMeta)
	}
	*portOf(one) = intstr.FromInt32(81)
	one = update(t, other, one)
	update(t, other, one) // changes nothing
	changed := w.want("put a/one")
	remove(t, other, api.NetworkPolicyKind, api.Key{Namespace: "a", Name: "one"})
	create(t, other, policy("b", "two"))
	gone := w.want("deleted a/one")
	two := w.want("put b/two")
	wantReached(t, list(t, s, api.NetworkPolicyKind, "").Reached, two)
	for _, e := range []store.Event{event, changed, gone, two} {
		wantReached(t, e.Reached, e)
	}
	if gone.Reached <= changed.Reached || two.Reached <= gone.Reached {
		t.Errorf("changed at %d, deleted at %d, the next created at %d: not in this order", changed.Reached, gone.Reached, two.Reached)
	}
	w.stop()
	if err := w.end(); err != nil {
		t.Errorf("ended by its context: %v", err)
	}

	// From each point exactly what came after it.
	watch(t, s, api.NetworkPolicyKind, empty.Revision).want("put a/one", "put a/one", "deleted a/one", "put b/two")
	watch(t, s, api.NetworkPolicyKind, changed.Revision).want("deleted a/one", "put b/two")
	watch(t, s, api.NetworkPolicyKind, gone.Revision).want("put b/two")
	now := watch(t, s, api.NetworkPolicyKind, list(t, s, api.NetworkPolicyKind, "").Revision)
	create(t, other, policy("c", "three"))
	now.want("put c/three")
	for _, revision := range []string{"", "x", "1.x", "1.1.1.1"} {
		if err := watch(t, s, api.NetworkPolicyKind, revision).end(); err == nil {
			t.Errorf("a watch from %q ended without an error", revision)
		}
	}
}

// wantReached checks that a list or an event says that an event is delivered.
func wantReached(t *testing.T, reached uint64, e store.Event) {
	t.Helper()
	version, err := strconv.ParseUint(e.Object.GetResourceVersion(), 10, 64)
	if err != nil || reached < version {
		t.Errorf("reached %d, though %s has resourceVersion %s", reached, api.KeyOf(e.Object), e.Object.GetResourceVersion())
	}
}

func testWatchCompacted(t *testing.T, server Server) {
	s := server.Open(t)
	old := list(t, s, api.NetworkPolicyKind, "")
	create(t, s, policy("a", "one"))
	create(t, s, policy("a", "two"))
	server.Compact(t)
	wantErr(t, watch(t, s, api.NetworkPolicyKind, old.Revision).end(), store.ErrCompacted)
	now := list(t, s, api.NetworkPolicyKind, "")
	if len(now.Items) != 2 {
		t.Errorf("listed %v", names(now.Items))
	}
	w := watch(t, s, api.NetworkPolicyKind, now.Revision)
	create(t, s, policy("a", "three"))
	w.want("put a/three")
}

func testWatchRestored(t *testing.T, server Server) {
	s := server.Open(t)
	server.Stop(t)
	server.Start(t)
	awaitStore(t, s)
	for _, name := range []string{"one", "two", "three"} {
		create(t, s, policy("a", name))
	}
	old := list(t, s, api.NetworkPolicyKind, "")
	server.Wipe(t)
	awaitStore(t, s)
	wantErr(t, watch(t, s, api.NetworkPolicyKind, old.Revision).end(), store.ErrRestored)
	for _, name := range []string{"one", "two", "three", "four", "five"} {
		create(t, s, policy("b", name))
	}
	// The revision exists now, and means something else.
	wantErr(t, watch(t, s, api.NetworkPolicyKind, old.Revision).end(), store.ErrRestored)
}

// testWatchPutBack has the server count on past all that is known before anybody
// looks.
func testWatchPutBack(t *testing.T, server Server) {
	s, other := server.Open(t), server.Open(t)
	create(t, other, policy("a", "one"))
	server.Backup(t)
	awaitStore(t, s)
	awaitStore(t, other)
	nodes := list(t, s, api.NodeKind, "")
	w := watch(t, s, api.NetworkPolicyKind, list(t, s, api.NetworkPolicyKind, "").Revision)
	create(t, other, policy("a", "two"))
	known := w.want("put a/two").Revision

	server.PutBack(t)
	awaitStore(t, other)
	for i := range 20 {
		create(t, other, policy("b", fmt.Sprint("n", i)))
	}
	awaitStore(t, s)
	listAgain := store.ErrRestored
	if _, ok := server.(Forgetful); ok {
		listAgain = store.ErrCompacted
	}
	wantErr(t, watch(t, s, api.NetworkPolicyKind, known).end(), listAgain)
	// Of nodes nothing was ever seen.
	wantErr(t, watch(t, s, api.NodeKind, nodes.Revision).end(), listAgain)

	w = watch(t, s, api.NetworkPolicyKind, list(t, s, api.NetworkPolicyKind, "").Revision)
	create(t, other, policy("a", "three"))
	now := w.want("put a/three")
	w.stop()
	create(t, other, policy("a", "four"))
	watch(t, s, api.NetworkPolicyKind, now.Revision).want("put a/four")
}

// awaitStore waits until the client has found its server again.
func awaitStore(t *testing.T, s store.Store) {
	t.Helper()
	eventually(t, "the store answers", func() bool {
		_, err := s.List(t.Context(), api.NodeKind, "")
		return err == nil
	})
}

// awaitReconnect has the client tell when its server is back, and what kept it
// from that; nil if such clients can't.
func awaitReconnect(t *testing.T, s store.Store) <-chan error {
	r, ok := s.(store.Reconnector)
	if !ok {
		return nil
	}
	ctx, back := bounded(t), make(chan error, 1)
	go func() { r.AwaitReconnect(ctx); back <- ctx.Err() }()
	return back
}

func testOutage(t *testing.T, server Server) {
	s := server.Open(t)
	obj := create(t, s, policy("a", "one"))
	before := list(t, s, api.NetworkPolicyKind, "")
	w := watch(t, s, api.NetworkPolicyKind, before.Revision)
	<-w.events
	server.Stop(t)
	wantErr(t, w.end(), store.ErrUnavailable)

	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := s.Get(ctx, api.NetworkPolicyKind, api.KeyOf(obj))
	wantErr(t, err, store.ErrUnavailable)
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("a context of 300 ms was held for %s", d)
	}
	_, err = s.Create(ctx, policy("a", "two"))
	wantErr(t, err, store.ErrUnavailable)
	back := awaitReconnect(t, s)
	wantErr(t, watch(t, s, api.NetworkPolicyKind, before.Revision).end(), store.ErrUnavailable)
	select {
	case <-back:
		t.Error("the store is back, it is told, while it is away")
	default:
	}

	server.Start(t)
	awaitStore(t, s)
	if back != nil {
		if err := <-back; err != nil {
			t.Errorf("it is not told that the store is back: %v", err)
		}
	}
	if _, err := s.Get(t.Context(), api.NetworkPolicyKind, api.KeyOf(obj)); err != nil {
		t.Error(err)
	}
	from := before.Revision
	if _, ok := server.(Forgetful); ok {
		from = list(t, s, api.NetworkPolicyKind, "").Revision
	}
	w = watch(t, s, api.NetworkPolicyKind, from)
	create(t, s, policy("a", "three"))
	w.want("put a/three")
}

func testContext(t *testing.T, server Server) {
	s := server.Open(t)
	obj := create(t, s, policy("a", "one"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Get(ctx, api.NetworkPolicyKind, api.KeyOf(obj))
	wantErr(t, err, context.Canceled)
	if errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a cancelled call blames the store: %v", err)
	}
	_, err = s.Create(ctx, policy("a", "two"))
	wantErr(t, err, context.Canceled)
	events, ended := s.Watch(ctx, api.NetworkPolicyKind, list(t, s, api.NetworkPolicyKind, "").Revision)
	for range events {
	}
	if err := ended(); err != nil {
		t.Error(err)
	}
}

func testClose(t *testing.T, server Server) {
	s := server.Open(t)
	w := watch(t, s, api.NetworkPolicyKind, list(t, s, api.NetworkPolicyKind, "").Revision)
	<-w.events
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := w.end(); err == nil {
		t.Error("a watch of a closed store ended as if by its context")
	}
	_, err := s.List(t.Context(), api.NetworkPolicyKind, "")
	wantErr(t, err, store.ErrUnavailable)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func testElection(t *testing.T, server Server) {
	a, ok := server.Open(t).(store.Elector)
	if !ok {
		t.Skip("this store elects nobody")
	}
	b := server.Open(t).(store.Elector)
	ctx := bounded(t)
	lost, resign, err := a.Campaign(ctx, "controller")
	if err != nil {
		t.Fatal(err)
	}
	_, resignOther, err := b.Campaign(ctx, "other")
	if err != nil {
		t.Fatal("two elections get in each other's way:", err)
	}
	resignOther()

	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, _, err := b.Campaign(short, "controller"); err == nil {
		t.Fatal("two leaders")
	}
	won := make(chan func(), 1)
	go func() {
		_, resign, err := b.Campaign(ctx, "controller")
		if err != nil {
			t.Error(err)
			resign = func() {}
		}
		won <- resign
	}()
	select {
	case <-lost:
		t.Fatal("leadership was lost without a reason")
	default:
	}
	resign()
	resign()
	<-lost
	(<-won)()
}
