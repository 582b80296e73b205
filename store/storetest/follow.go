package storetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// consumer keeps what Follow tells it.
type consumer struct {
	mu      sync.Mutex
	values  map[string]string // "namespace/name" → label "value"
	deleted []string
	synced  int
	up      []bool
}

func follow(t *testing.T, s store.Store, kind *api.Kind) *consumer {
	c := &consumer{values: map[string]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	locked := func(f func()) {
		c.mu.Lock()
		defer c.mu.Unlock()
		f()
	}
	go func() {
		defer close(done)
		store.Follow(ctx, s, kind, store.Handler{
			Put: func(obj api.Object) {
				locked(func() { c.values[api.KeyOf(obj).String()] = obj.GetLabels()["value"] })
			},
			Deleted: func(key api.Key) {
				locked(func() { delete(c.values, key.String()); c.deleted = append(c.deleted, key.String()) })
			},
			Synced:    func() { locked(func() { c.synced++ }) },
			Connected: func(up bool, _ error) { locked(func() { c.up = append(c.up, up) }) },
		})
	}()
	return c
}

// want waits until the consumer holds exactly these, as "a/one:1".
func (c *consumer) want(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	defer func() {
		if t.Failed() {
			t.Logf("has %v, want %v", got, want)
		}
	}()
	eventually(t, "the consumer is in step", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		got = nil
		for _, name := range slices.Sorted(maps.Keys(c.values)) {
			got = append(got, fmt.Sprintf("%s:%s", name, c.values[name]))
		}
		return slices.Equal(got, want) && c.synced == 1
	})
}

func (c *consumer) wantDeleted(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.deleted, want) {
		t.Errorf("deleted %v, want %v", c.deleted, want)
	}
}

func (c *consumer) wantDown(t *testing.T) {
	t.Helper()
	eventually(t, "the outage is noticed", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.up) > 0 && !c.up[len(c.up)-1]
	})
}

// valued is an object whose value is 1.
func valued[T api.Object](obj T) T {
	obj.SetLabels(map[string]string{"value": "1"})
	return obj
}

func setValue(t *testing.T, s store.Store, key api.Key, value string) {
	t.Helper()
	obj, err := s.Get(bounded(t), api.NetworkPolicyKind, key)
	if err != nil {
		t.Fatal(err)
	}
	obj.SetLabels(map[string]string{"value": value})
	update(t, s, obj)
}

func testFollowOutage(t *testing.T, server Server) {
	s := server.Open(t)
	one := create(t, s, valued(policy("a", "one")))
	create(t, s, valued(policy("a", "two")))
	c := follow(t, server.Open(t), api.NetworkPolicyKind)
	c.want(t, "a/one:1", "a/two:1")
	server.Stop(t)
	c.wantDown(t)
	server.Start(t)
	awaitStore(t, s)
	setValue(t, s, api.KeyOf(one), "2")
	create(t, s, valued(policy("a", "three")))
	c.want(t, "a/one:2", "a/two:1", "a/three:1")
	c.wantDeleted(t)
	remove(t, s, api.NetworkPolicyKind, api.KeyOf(one))
	c.want(t, "a/two:1", "a/three:1")
	c.wantDeleted(t, "a/one")
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.up, []bool{true, false, true}) {
		t.Errorf("connected: %v", c.up)
	}
}

func testFollowCompacted(t *testing.T, server Server) {
	s := server.Open(t)
	for _, name := range []string{"one", "two", "three"} {
		create(t, s, valued(policy("a", name)))
	}
	c := follow(t, server.Open(t), api.NetworkPolicyKind)
	c.want(t, "a/one:1", "a/two:1", "a/three:1")
	server.Stop(t)
	c.wantDown(t)
	server.Start(t)
	awaitStore(t, s)
	setValue(t, s, api.Key{Namespace: "a", Name: "one"}, "2")
	remove(t, s, api.NetworkPolicyKind, api.Key{Namespace: "a", Name: "two"})
	create(t, s, valued(policy("a", "four")))
	server.Compact(t)
	c.want(t, "a/one:2", "a/three:1", "a/four:1")
	c.wantDeleted(t, "a/two")
}

func testFollowWiped(t *testing.T, server Server) {
	s := server.Open(t)
	for _, name := range []string{"one", "two", "three"} {
		create(t, s, valued(policy("a", name)))
	}
	c := follow(t, server.Open(t), api.NetworkPolicyKind)
	c.want(t, "a/one:1", "a/two:1", "a/three:1")
	server.Wipe(t)
	awaitStore(t, s)
	// Fewer revisions than before, as a backup has.
	create(t, s, valued(policy("a", "one")))
	setValue(t, s, api.Key{Namespace: "a", Name: "one"}, "2")
	c.want(t, "a/one:2")
	create(t, s, valued(policy("a", "five")))
	c.want(t, "a/one:2", "a/five:1")
}

func testFollowUnreadable(t *testing.T, server Server) {
	s := server.Open(t)
	create(t, s, valued(pool("one")))
	create(t, s, valued(pool("two")))
	c := follow(t, server.Open(t), api.IPPoolKind)
	c.want(t, "one:1", "two:1")
	server.Corrupt(t, api.IPPoolKind, api.Key{Name: "one"})
	create(t, s, valued(pool("three")))
	c.want(t, "one:1", "two:1", "three:1")
	server.Stop(t)
	c.wantDown(t)
	server.Start(t)
	awaitStore(t, s)
	create(t, s, valued(pool("four")))
	server.Compact(t) // so that it lists
	c.want(t, "one:1", "two:1", "three:1", "four:1")
	c.wantDeleted(t)
	remove(t, s, api.IPPoolKind, api.Key{Name: "one"})
	c.want(t, "two:1", "three:1", "four:1")
	c.wantDeleted(t, "one")
}
