package storetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// consumer keeps what Follow tells it.
type consumer struct {
	mu      sync.Mutex
	ports   map[string]int32 // "namespace/name" → first port
	deleted []string
	synced  int
	up      []bool
}

func follow(t *testing.T, s store.Store) *consumer {
	c := &consumer{ports: map[string]int32{}}
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
		store.Follow(ctx, s, api.ServiceKind, store.Handler{
			Put: func(obj api.Object) {
				locked(func() { c.ports[api.KeyOf(obj).String()] = obj.(*corev1.Service).Spec.Ports[0].Port })
			},
			Deleted: func(key api.Key) {
				locked(func() { delete(c.ports, key.String()); c.deleted = append(c.deleted, key.String()) })
			},
			Synced:    func() { locked(func() { c.synced++ }) },
			Connected: func(up bool, _ error) { locked(func() { c.up = append(c.up, up) }) },
		})
	}()
	return c
}

// want waits until the consumer holds exactly these, as "a/one:80".
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
		for _, name := range slices.Sorted(maps.Keys(c.ports)) {
			got = append(got, fmt.Sprintf("%s:%d", name, c.ports[name]))
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

func setPort(t *testing.T, s store.Store, key api.Key, port int32) {
	t.Helper()
	obj, err := s.Get(bounded(t), api.ServiceKind, key)
	if err != nil {
		t.Fatal(err)
	}
	svc := obj.(*corev1.Service)
	svc.Spec.Ports[0].Port = port
	update(t, s, svc)
}

func testFollowOutage(t *testing.T, server Server) {
	s := server.Open(t)
	one := create(t, s, service("a", "one"))
	create(t, s, service("a", "two"))
	c := follow(t, server.Open(t))
	c.want(t, "a/one:80", "a/two:80")
	server.Stop(t)
	c.wantDown(t)
	server.Start(t)
	awaitStore(t, s)
	setPort(t, s, api.KeyOf(one), 81)
	create(t, s, service("a", "three"))
	c.want(t, "a/one:81", "a/two:80", "a/three:80")
	c.wantDeleted(t)
	remove(t, s, api.ServiceKind, api.KeyOf(one))
	c.want(t, "a/two:80", "a/three:80")
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
		create(t, s, service("a", name))
	}
	c := follow(t, server.Open(t))
	c.want(t, "a/one:80", "a/two:80", "a/three:80")
	server.Stop(t)
	c.wantDown(t)
	server.Start(t)
	awaitStore(t, s)
	setPort(t, s, api.Key{Namespace: "a", Name: "one"}, 81)
	remove(t, s, api.ServiceKind, api.Key{Namespace: "a", Name: "two"})
	create(t, s, service("a", "four"))
	server.Compact(t)
	c.want(t, "a/one:81", "a/three:80", "a/four:80")
	c.wantDeleted(t, "a/two")
}

func testFollowWiped(t *testing.T, server Server) {
	s := server.Open(t)
	for _, name := range []string{"one", "two", "three"} {
		create(t, s, service("a", name))
	}
	c := follow(t, server.Open(t))
	c.want(t, "a/one:80", "a/two:80", "a/three:80")
	server.Wipe(t)
	awaitStore(t, s)
	// Fewer revisions than before, as a backup has.
	create(t, s, service("a", "one"))
	setPort(t, s, api.Key{Namespace: "a", Name: "one"}, 82)
	c.want(t, "a/one:82")
	create(t, s, service("a", "five"))
	c.want(t, "a/one:82", "a/five:80")
}

func testFollowUnreadable(t *testing.T, server Server) {
	s := server.Open(t)
	create(t, s, service("a", "one"))
	create(t, s, service("a", "two"))
	c := follow(t, server.Open(t))
	c.want(t, "a/one:80", "a/two:80")
	server.Corrupt(t, api.ServiceKind, api.Key{Namespace: "a", Name: "one"})
	create(t, s, service("a", "three"))
	c.want(t, "a/one:80", "a/two:80", "a/three:80")
	server.Stop(t)
	c.wantDown(t)
	server.Start(t)
	awaitStore(t, s)
	create(t, s, service("a", "four"))
	server.Compact(t) // so that it lists
	c.want(t, "a/one:80", "a/two:80", "a/three:80", "a/four:80")
	c.wantDeleted(t)
	remove(t, s, api.ServiceKind, api.Key{Namespace: "a", Name: "one"})
	c.want(t, "a/two:80", "a/three:80", "a/four:80")
	c.wantDeleted(t, "a/one")
}
