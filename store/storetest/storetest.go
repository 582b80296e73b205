// Package storetest is the contract of store.Store as a test: each
// implementation runs it against a server that it can stop, compact and damage.
//
// It never assumes how objects are kept.
package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// patience bounds every wait; a healthy store needs a small part of it.
const patience = time.Minute

// Server is one empty store, and what can befall it. Its namespaces are default,
// a, ab, b and c, if it insists on namespaces.
type Server interface {
	// Open returns another client.
	Open(t *testing.T) store.Store
	// Stop ends the server, Start brings it back with its data.
	Stop(t *testing.T)
	Start(t *testing.T)
	// Compact drops all history.
	Compact(t *testing.T)
	// Corrupt writes a value that is no object.
	Corrupt(t *testing.T, kind *api.Kind, key api.Key)
	// Wipe replaces the running server by an empty one.
	Wipe(t *testing.T)
	// Backup keeps what there is, PutBack puts the server back to that. Both may
	// restart it.
	Backup(t *testing.T)
	PutBack(t *testing.T)
}

// Forgetful is implemented by servers whose history may end when they do: where
// another's watch resumes, one has to list again. What was put back from a backup
// is there what is too old: its operators see to it.
type Forgetful interface {
	ForgetsHistory()
}

// Run tests the stores that start makes; start registers its own clean-up.
func Run(t *testing.T, start func(*testing.T) Server) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Server)
	}{
		{"Create", testCreate},
		{"Update", testUpdate},
		{"Delete", testDelete},
		{"Keys", testKeys},
		{"List", testList},
		{"ListManyPages", testListManyPages},
		{"Watch", testWatch},
		{"WatchCompacted", testWatchCompacted},
		{"WatchRestored", testWatchRestored},
		{"WatchPutBack", testWatchPutBack},
		{"ConcurrentUpdates", testConcurrentUpdates},
		{"Outage", testOutage},
		{"Context", testContext},
		{"Close", testClose},
		{"Unreadable", testUnreadable},
		{"Election", testElection},
		{"FollowOutage", testFollowOutage},
		{"FollowCompacted", testFollowCompacted},
		{"FollowWiped", testFollowWiped},
		{"FollowUnreadable", testFollowUnreadable},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, start(t))
		})
	}
}

// bounded is a context that ends when patience does.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func service(namespace, name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

// policy allows one port. Of this kind no server has objects of its own.
func policy(namespace, name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec: networkingv1.NetworkPolicySpec{
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &intstr.IntOrString{}}}}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
	*portOf(p) = intstr.FromInt32(80)
	return p
}

func portOf(p *networkingv1.NetworkPolicy) *intstr.IntOrString {
	return p.Spec.Ingress[0].Ports[0].Port
}

func pool(name string) *api.IPPool {
	return &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: api.IPPoolSpec{CIDR: "10.244.0.0/16"}}
}

func create[T api.Object](t *testing.T, s store.Store, obj T) T {
	t.Helper()
	out, err := s.Create(bounded(t), obj)
	if err != nil {
		t.Fatal(err)
	}
	return out.(T)
}

func update[T api.Object](t *testing.T, s store.Store, obj T) T {
	t.Helper()
	out, err := s.Update(bounded(t), obj)
	if err != nil {
		t.Fatal(err)
	}
	return out.(T)
}

func remove(t *testing.T, s store.Store, kind *api.Kind, key api.Key) {
	t.Helper()
	if err := s.Delete(bounded(t), kind, key, ""); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, s store.Store, kind *api.Kind, namespace string) store.List {
	t.Helper()
	l, err := s.List(bounded(t), kind, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func names(objects []api.Object) []string {
	var out []string
	for _, obj := range objects {
		out = append(out, api.KeyOf(obj).String())
	}
	return out
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
	}
}

// watching reads one watch.
type watching struct {
	t      *testing.T
	events <-chan store.Event
	ended  func() error
	stop   context.CancelFunc
}

func watch(t *testing.T, s store.Store, kind *api.Kind, revision string) *watching {
	ctx, cancel := context.WithCancel(bounded(t))
	t.Cleanup(cancel)
	events, ended := s.Watch(ctx, kind, revision)
	return &watching{t, events, ended, cancel}
}

// next returns the next change, as "put namespace/name" or the like.
func (w *watching) next() (string, store.Event) {
	w.t.Helper()
	for event := range w.events {
		if event.Type != store.Bookmark {
			return fmt.Sprintf("%s %s", event.Type, api.KeyOf(event.Object)), event
		}
	}
	w.t.Fatalf("the watch ended: %v", w.ended())
	panic("unreachable")
}

// want expects these changes next and returns the last one.
func (w *watching) want(changes ...string) store.Event {
	w.t.Helper()
	var last store.Event
	for _, want := range changes {
		var got string
		if got, last = w.next(); got != want {
			w.t.Fatalf("change %q, want %q", got, want)
		}
	}
	return last
}

// end reads until the channel closes and says why it did.
func (w *watching) end() error {
	for range w.events {
	}
	return w.ended()
}
