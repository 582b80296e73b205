package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

func testCreate(t *testing.T, server Server) {
	s := server.Open(t)
	ctx := bounded(t)
	in := policy("default", "web")
	in.ResourceVersion, in.UID = "77", "mine"
	before := in.DeepCopy()
	out := create(t, s, in)
	if diff := cmp.Diff(before, in); diff != "" {
		t.Errorf("the argument was changed: %s", diff)
	}
	if len(out.UID) != 36 || out.CreationTimestamp.IsZero() || out.Generation != 1 || out.ResourceVersion == "" {
		t.Errorf("not stamped: %+v", out.ObjectMeta)
	}
	if time.Since(out.CreationTimestamp.Time) > time.Minute {
		t.Errorf("created at %s", out.CreationTimestamp)
	}
	if out.APIVersion != "networking.k8s.io/v1" || out.Kind != "NetworkPolicy" {
		t.Errorf("type %s %s", out.APIVersion, out.Kind)
	}
	got, err := s.Get(ctx, api.NetworkPolicyKind, api.KeyOf(in))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(api.Object(out), got); diff != "" {
		t.Errorf("get differs from what create returned: %s", diff)
	}
	got.SetLabels(map[string]string{"changed": "by the caller"})
	again, err := s.Get(ctx, api.NetworkPolicyKind, api.KeyOf(in))
	if err != nil || again.GetLabels()["app"] != "web" {
		t.Errorf("the caller's copy is shared: %v, %v", again, err)
	}
	_, err = s.Create(ctx, in)
	wantErr(t, err, store.ErrExists)
	_, err = s.Get(ctx, api.NetworkPolicyKind, api.Key{Namespace: "default", Name: "we"})
	wantErr(t, err, store.ErrNotFound)
}

func testUpdate(t *testing.T, server Server) {
	s := server.Open(t)
	ctx := bounded(t)
	_, err := s.Update(ctx, policy("default", "web"))
	wantErr(t, err, store.ErrNotFound)
	first := create(t, s, policy("default", "web"))

	labelled := first.DeepCopy()
	labelled.Labels["tier"] = "front"
	labelled.UID = "other"
	second := update(t, s, labelled)
	if second.Generation != 1 || second.UID != first.UID || second.ResourceVersion == first.ResourceVersion {
		t.Errorf("after a change of labels: %+v, before: %+v", second.ObjectMeta, first.ObjectMeta)
	}
	_, err = s.Update(ctx, labelled)
	wantErr(t, err, store.ErrConflict)
	noVersion := second.DeepCopy()
	noVersion.ResourceVersion = ""
	_, err = s.Update(ctx, noVersion)
	wantErr(t, err, store.ErrConflict)

	third := update(t, s, second)
	if third.ResourceVersion != second.ResourceVersion {
		t.Errorf("an update that changes nothing was written")
	}
	changed := third.DeepCopy()
	*portOf(changed) = intstr.FromInt32(81)
	fourth := update(t, s, changed)
	if fourth.Generation != 2 || !fourth.CreationTimestamp.Equal(&first.CreationTimestamp) {
		t.Errorf("after a change of spec: %+v", fourth.ObjectMeta)
	}
	// Not every server counts generations of this kind.
	svc := create(t, s, balanced(service("default", "web")))
	withStatus := svc.DeepCopy()
	withStatus.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	withStatus.Labels["tier"] = "front"
	got := update(t, s, withStatus)
	if got.Generation != svc.Generation {
		t.Errorf("generation %d after a change of status, want %d", got.Generation, svc.Generation)
	}
	if got.Labels["tier"] != "front" || len(got.Status.LoadBalancer.Ingress) != 1 {
		t.Errorf("labels and status were changed, and are %v, %+v", got.Labels, got.Status)
	}
}

func testDelete(t *testing.T, server Server) {
	s := server.Open(t)
	ctx := bounded(t)
	key := api.Key{Name: "pool"}
	wantErr(t, s.Delete(ctx, api.IPPoolKind, key, ""), store.ErrNotFound)
	first := create(t, s, pool("pool"))
	changed := first.DeepCopyObject().(*api.IPPool)
	changed.Spec.NATOutgoing = true
	second := update(t, s, changed)
	wantErr(t, s.Delete(ctx, api.IPPoolKind, key, first.ResourceVersion), store.ErrConflict)
	wantErr(t, s.Delete(ctx, api.IPPoolKind, key, "no number"), store.ErrConflict)
	if err := s.Delete(ctx, api.IPPoolKind, key, second.ResourceVersion); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Delete(ctx, api.IPPoolKind, key, second.ResourceVersion), store.ErrNotFound)
	third := create(t, s, pool("pool"))
	if third.UID == first.UID || third.Generation != 1 {
		t.Errorf("created again: %+v", third.ObjectMeta)
	}
	_, err := s.Update(ctx, second)
	wantErr(t, err, store.ErrConflict)
}

// balanced makes a service one that may have a status.
func balanced(s *corev1.Service) *corev1.Service {
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	return s
}

func testKeys(t *testing.T, server Server) {
	s := server.Open(t)
	ctx := bounded(t)
	for _, obj := range []api.Object{
		service("", "web"), service("default", ""), service("default", "a/b"), service("a/b", "c"), pool(""), pool("a/b"),
	} {
		if _, err := s.Create(ctx, obj); err == nil {
			t.Errorf("%T %q was created", obj, api.KeyOf(obj))
		}
		if _, err := s.Get(ctx, api.KindOf(obj), api.KeyOf(obj)); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("get %T %q: %v", obj, api.KeyOf(obj), err)
		}
		if err := s.Delete(ctx, api.KindOf(obj), api.KeyOf(obj), ""); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("delete %T %q: %v", obj, api.KeyOf(obj), err)
		}
	}
	inNamespace := pool("p")
	inNamespace.Namespace = "default"
	if _, err := s.Create(ctx, inNamespace); err == nil {
		t.Error("a pool was created in a namespace")
	}
	if _, err := s.List(ctx, api.IPPoolKind, "default"); err == nil {
		t.Error("pools of a namespace were listed")
	}
}

func testList(t *testing.T, server Server) {
	s := server.Open(t)
	if l := list(t, s, api.NetworkPolicyKind, ""); len(l.Items) != 0 || l.Revision == "" {
		t.Errorf("empty store: %+v", l)
	}
	for _, obj := range []api.Object{
		policy("b", "two"), policy("a", "one"), policy("ab", "three"), policy("a", "zero"), pool("one"),
	} {
		create(t, s, obj)
	}
	if diff := cmp.Diff([]string{"a/one", "a/zero", "ab/three", "b/two"}, names(list(t, s, api.NetworkPolicyKind, "").Items)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"a/one", "a/zero"}, names(list(t, s, api.NetworkPolicyKind, "a").Items)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"one"}, names(list(t, s, api.IPPoolKind, "").Items)); diff != "" {
		t.Error(diff)
	}
	item := list(t, s, api.IPPoolKind, "").Items[0].(*api.IPPool)
	if item.ResourceVersion == "" || item.Kind != "IPPool" || item.APIVersion != "projectcalico.org/v3" || item.Spec.CIDR != "10.244.0.0/16" {
		t.Errorf("listed %+v", item)
	}
}

// each calls do(0) … do(n-1) from several goroutines.
func each(n int, do func(int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func testListManyPages(t *testing.T, server Server) {
	s := server.Open(t)
	ctx := bounded(t)
	const n = 2345
	each(n, func(i int) {
		if _, err := s.Create(ctx, pool(fmt.Sprintf("p%04d", i))); err != nil {
			t.Error(err)
		}
	})
	l := list(t, s, api.IPPoolKind, "")
	if len(l.Items) != n {
		t.Fatalf("%d items, want %d", len(l.Items), n)
	}
	for i, obj := range l.Items {
		if want := fmt.Sprintf("p%04d", i); obj.GetName() != want {
			t.Fatalf("item %d is %s, want %s", i, obj.GetName(), want)
		}
	}
	create(t, s, pool("q"))
	watch(t, s, api.IPPoolKind, l.Revision).want("put q")
	if pager, ok := s.(store.Pager); ok {
		testPages(t, pager, append(names(l.Items), "q"))
	}
}

func testPages(t *testing.T, s store.Pager, want []string) {
	var got []string
	pages := 0
	l, err := s.Pages(bounded(t), api.IPPoolKind, func(page []api.Object) { got, pages = append(got, names(page)...), pages+1 })
	if err != nil || len(l.Items) > 0 || l.Revision == "" || pages < 2 || !slices.Equal(got, want) {
		t.Errorf("%d items in %d pages, and %d in the list of revision %q (%v); want %d", len(got), pages, len(l.Items), l.Revision, err, len(want))
	}
}

func testConcurrentUpdates(t *testing.T, server Server) {
	ctx := bounded(t)
	s := server.Open(t)
	created := create(t, s, pool("counter"))
	start := list(t, s, api.IPPoolKind, "")
	const workers, rounds = 6, 20
	var wg sync.WaitGroup
	for range workers {
		client := server.Open(t)
		wg.Go(func() {
			for range rounds {
				if err := increment(ctx, client); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got, err := s.Get(ctx, api.IPPoolKind, api.KeyOf(created))
	if err != nil || got.GetAnnotations()["n"] != strconv.Itoa(workers*rounds) {
		t.Fatalf("counted %v, want %d (%v)", got.GetAnnotations(), workers*rounds, err)
	}
	w := watch(t, s, api.IPPoolKind, start.Revision)
	for i := range workers * rounds {
		if event := w.want("put counter"); event.Object.GetAnnotations()["n"] != strconv.Itoa(i+1) {
			t.Fatalf("event %d says %s", i, event.Object.GetAnnotations()["n"])
		}
	}
	winners := make(chan int, workers)
	each(workers, func(i int) {
		_, err := s.Create(ctx, pool("claim"))
		if err == nil {
			winners <- i
		} else if !errors.Is(err, store.ErrExists) {
			t.Error(err)
		}
	})
	if len(winners) != 1 {
		t.Errorf("%d created the same object", len(winners))
	}
}

func increment(ctx context.Context, s store.Store) error {
	for {
		obj, err := s.Get(ctx, api.IPPoolKind, api.Key{Name: "counter"})
		if err != nil {
			return err
		}
		n, _ := strconv.Atoi(obj.GetAnnotations()["n"])
		obj.SetAnnotations(map[string]string{"n": strconv.Itoa(n + 1)})
		_, err = s.Update(ctx, obj)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

func testUnreadable(t *testing.T, server Server) {
	s := server.Open(t)
	ctx := bounded(t)
	create(t, s, pool("one"))
	before := list(t, s, api.IPPoolKind, "")
	bad := api.Key{Name: "bad"}
	server.Corrupt(t, api.IPPoolKind, bad)
	create(t, s, pool("two"))

	watch(t, s, api.IPPoolKind, before.Revision).want("put two")
	l := list(t, s, api.IPPoolKind, "")
	if diff := cmp.Diff([]string{"one", "two"}, names(l.Items)); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(l.Unreadable, []api.Key{bad}) {
		t.Errorf("unreadable: %v", l.Unreadable)
	}
	if _, err := s.Get(ctx, api.IPPoolKind, bad); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	_, err := s.Create(ctx, pool("bad"))
	wantErr(t, err, store.ErrExists)
	if _, err := s.Update(ctx, pool("bad")); err == nil {
		t.Error("an object of no version replaced an unreadable one")
	}
	remove(t, s, api.IPPoolKind, bad)
	create(t, s, pool("bad"))
	if l := list(t, s, api.IPPoolKind, ""); len(l.Items) != 3 || len(l.Unreadable) != 0 {
		t.Errorf("after it was mended: %v, unreadable %v", names(l.Items), l.Unreadable)
	}
}
