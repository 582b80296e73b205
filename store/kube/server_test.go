package kube

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/test/testkube"
)

// TestOnAServer holds what only this store does against a real API server.
func TestOnAServer(t *testing.T) {
	testkube.Program(t, "kube-apiserver")
	s := newServer(t)
	t.Run("Pods", func(t *testing.T) { testPods(t, s) })
	t.Run("Node", func(t *testing.T) { testNode(t, s) })
	t.Run("ServiceStatus", func(t *testing.T) { testServiceStatus(t, s) })
	t.Run("CustomResources", func(t *testing.T) { testCustomResources(t, s) })
	t.Run("Refusals", func(t *testing.T) { testRefusals(t, s) })
}

// write is what somebody else does beside the store.
func (s *server) write(t *testing.T, method, path, contentType string, body any) {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	code, answer, err := s.Do(method, path, contentType, raw)
	if err != nil || code >= http.StatusBadRequest {
		t.Fatalf("%s %s: %d %s %v", method, path, code, answer, err)
	}
}

func (s *server) createPod(t *testing.T, name string, hostNetwork bool) {
	t.Helper()
	s.write(t, http.MethodPost, "/api/v1/namespaces/a/pods", "application/json", &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName: "node01", HostNetwork: hostNetwork,
			Containers: []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}},
		},
	})
}

func (s *server) setPodStatus(t *testing.T, name string, phase corev1.PodPhase, ip string) {
	t.Helper()
	s.write(t, http.MethodPatch, "/api/v1/namespaces/a/pods/"+name+"/status", "application/merge-patch+json",
		map[string]any{"status": map[string]any{"phase": phase, "podIP": ip, "podIPs": []any{map[string]any{"ip": ip}}}})
}

// nextChange is the next event that is no bookmark.
func nextChange(t *testing.T, events <-chan store.Event, ended func() error) store.Event {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case event, ok := <-events:
			if !ok {
				t.Fatal("the watch ended:", ended())
			}
			if event.Type != store.Bookmark {
				return event
			}
		case <-deadline:
			t.Fatal("no event")
		}
	}
}

// testPods follows pods through their lives.
func testPods(t *testing.T, s *server) {
	opened := s.Open(t)
	before, err := opened.List(t.Context(), api.WorkloadEndpointKind, "")
	if err != nil || len(before.Items) != 0 {
		t.Fatal(before, err)
	}
	events, ended := opened.Watch(t.Context(), api.WorkloadEndpointKind, before.Revision)
	expect := func(kind store.EventType, name string) *api.WorkloadEndpoint {
		t.Helper()
		event := nextChange(t, events, ended)
		if event.Type != kind || event.Object.GetName() != name {
			t.Fatalf("%s %s, want %s %s", event.Type, event.Object.GetName(), kind, name)
		}
		return event.Object.(*api.WorkloadEndpoint)
	}

	s.createPod(t, "host", true)
	s.setPodStatus(t, "host", corev1.PodRunning, "192.0.2.1")
	s.createPod(t, "web", false)
	got, err := opened.Get(t.Context(), api.WorkloadEndpointKind, api.Key{Namespace: "a", Name: "web"})
	if err != nil || got.GetLabels()["app"] != "web" {
		t.Fatalf("before it has an address: %+v, %v", got, err)
	}
	_, err = opened.Get(t.Context(), api.WorkloadEndpointKind, api.Key{Namespace: "a", Name: "host"})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a pod of the host's network: %v", err)
	}
	s.setPodStatus(t, "web", corev1.PodRunning, "10.244.1.5")
	w := expect(store.Put, "web")
	if w.Spec.Node != "node01" || !slices.Equal(w.Spec.IPNetworks, []string{"10.244.1.5/32"}) || len(w.Spec.Ports) != 1 || w.UID != got.GetUID() {
		t.Errorf("%+v", w)
	}
	s.setPodStatus(t, "web", corev1.PodRunning, "10.244.1.6")
	if w := expect(store.Put, "web"); !slices.Equal(w.Spec.IPNetworks, []string{"10.244.1.6/32"}) {
		t.Errorf("%+v", w)
	}
	list, err := opened.List(t.Context(), api.WorkloadEndpointKind, "")
	if err != nil || len(list.Items) != 1 || list.Items[0].GetName() != "web" {
		t.Errorf("listed %v, %v", list.Items, err)
	}
	s.setPodStatus(t, "web", corev1.PodSucceeded, "10.244.1.6")
	expect(store.Deleted, "web")
	if list, err = opened.List(t.Context(), api.WorkloadEndpointKind, "a"); err != nil || len(list.Items) != 0 {
		t.Errorf("listed %v, %v", list.Items, err)
	}
}

// testNode has the kubelet write its part of a Node between our reading and
// our writing.
func testNode(t *testing.T, s *server) {
	opened := s.Open(t)
	path := "/api/v1/nodes"
	registered := node()
	registered.ResourceVersion = ""
	s.write(t, http.MethodPost, path, "application/json", registered)
	path += "/node01"
	get := func() *corev1.Node {
		t.Helper()
		obj, err := opened.Get(t.Context(), api.NodeKind, api.Key{Name: "node01"})
		if err != nil {
			t.Fatal(err)
		}
		return obj.(*corev1.Node)
	}
	n := get()
	n.Annotations[api.ReceivesAnnotation] = `{"host-gw":{}}`
	n.Status.Conditions = append(n.Status.Conditions[:1:1], corev1.NodeCondition{
		Type: api.ConditionPrefix + "NotSynced", Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now().Rfc3339Copy()})
	n.Status.Addresses = nil
	updated, err := opened.Update(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, http.MethodPatch, path+"/status", "application/strategic-merge-patch+json", map[string]any{"status": map[string]any{
		"conditions": []any{map[string]any{"type": "Ready", "status": "False"}}}})
	got := get()
	var types []string
	for _, c := range got.Status.Conditions {
		types = append(types, string(c.Type)+"="+string(c.Status))
	}
	slices.Sort(types)
	if !slices.Equal(types, []string{"Ready=False", "TwillNotSynced=True"}) || len(got.Status.Addresses) != 1 || got.Annotations[api.ReceivesAnnotation] == "" {
		t.Errorf("%v, %+v", types, got)
	}
	if _, err := opened.Update(t.Context(), updated); !errors.Is(err, store.ErrConflict) {
		t.Errorf("of an old version: %v", err)
	}
	again, err := opened.Update(t.Context(), got)
	if err != nil || again.GetResourceVersion() != got.ResourceVersion {
		t.Errorf("an update that changes nothing was written: %v", err)
	}
}

// testServiceStatus: a condition is written beside those of other writers, and an Event
// about the Service is found by its uid, as kubectl does.
func testServiceStatus(t *testing.T, s *server) {
	opened := s.Open(t)
	svc := api.ServiceKind.New().(*corev1.Service)
	svc.Namespace, svc.Name, svc.Spec.Ports = "a", strings.Repeat("s", 63), []corev1.ServicePort{{Port: 80}}
	created, err := opened.Create(t.Context(), svc)
	if err != nil {
		t.Fatal(err)
	}
	stale := created.DeepCopyObject().(*corev1.Service)
	s.write(t, http.MethodPatch, "/api/v1/namespaces/a/services/"+svc.Name+"/status", "application/merge-patch+json", map[string]any{"status": map[string]any{
		"conditions": []any{map[string]any{"type": "example.com/Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}}}})
	condition := metav1.Condition{Type: "twill.io/Programmed", Status: metav1.ConditionFalse, Reason: "NotProgrammed", Message: "m", LastTransitionTime: metav1.Now()}
	stale.Status.Conditions = []metav1.Condition{condition}
	if _, err := opened.Update(t.Context(), stale); !errors.Is(err, store.ErrConflict) {
		t.Errorf("of an old version: %v", err)
	}
	update := func(change func(*corev1.Service)) *corev1.Service {
		t.Helper()
		obj, err := opened.Get(t.Context(), api.ServiceKind, api.KeyOf(created))
		if err != nil {
			t.Fatal(err)
		}
		change(obj.(*corev1.Service))
		if obj, err = opened.Update(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
		return obj.(*corev1.Service)
	}
	got := update(func(s *corev1.Service) { s.Status.Conditions = append(s.Status.Conditions, condition) })
	if len(got.Status.Conditions) != 2 {
		t.Errorf("conditions %+v", got.Status.Conditions)
	}
	got = update(func(s *corev1.Service) { s.Status.Conditions = s.Status.Conditions[:1] })
	if len(got.Status.Conditions) != 1 || got.Status.Conditions[0].Type != "example.com/Ready" {
		t.Errorf("conditions %+v", got.Status.Conditions)
	}

	message := strings.Repeat("m", 1024)
	for range 2 {
		if err := opened.(store.EventRecorder).RecordWarning(t.Context(), got, "NotProgrammed", message); err != nil {
			t.Fatal(err)
		}
	}
	_, body, err := s.Do(http.MethodGet, "/api/v1/namespaces/a/events?fieldSelector=involvedObject.uid="+string(got.UID), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var events corev1.EventList
	if err := json.Unmarshal(body, &events); err != nil || len(events.Items) != 2 {
		t.Fatalf("%d Events, %v: %s", len(events.Items), err, body)
	}
	e := events.Items[0]
	if e.Type != corev1.EventTypeWarning || e.Reason != "NotProgrammed" || e.Message != message || e.InvolvedObject.Kind != "Service" ||
		e.InvolvedObject.APIVersion != "v1" || e.Source.Component != "twill-controller" || e.LastTimestamp.IsZero() {
		t.Errorf("%+v", e)
	}
}

// testCustomResources compares what the API server says of custom resources with
// what api.Validate says.
func testCustomResources(t *testing.T, s *server) {
	opened := s.Open(t)
	pool := func(change func(*api.IPPoolSpec)) api.Object {
		p := api.IPPoolKind.New().(*api.IPPool)
		p.Name, p.Spec.CIDR = "pool", "10.244.0.0/16"
		change(&p.Spec)
		return p
	}
	fabric := func(name string, spec api.FabricConfigurationSpec) api.Object {
		f := api.FabricConfigurationKind.New().(*api.FabricConfiguration)
		f.Name, f.Spec = name, spec
		return f
	}
	block := func(cidr, affinity string) api.Object {
		b := api.IPAMBlockKind.New().(*api.IPAMBlock)
		b.Name, b.Spec = "block", api.IPAMBlockSpec{CIDR: cidr, Affinity: affinity}
		return b
	}
	for name, obj := range map[string]api.Object{
		"pool":                   pool(func(*api.IPPoolSpec) {}),
		"IPv6":                   pool(func(s *api.IPPoolSpec) { s.CIDR, s.BlockSize = "fd00:10:244::/56", 120 }),
		"small":                  pool(func(s *api.IPPoolSpec) { s.CIDR = "10.244.0.0/28" }),
		"no cidr":                pool(func(s *api.IPPoolSpec) { s.CIDR = "" }),
		"host bits":              pool(func(s *api.IPPoolSpec) { s.CIDR = "10.244.0.1/16" }),
		"no prefix":              pool(func(s *api.IPPoolSpec) { s.CIDR = "10.244.0.0" }),
		"not canonical":          pool(func(s *api.IPPoolSpec) { s.CIDR = "fd00:0:0:0::/56" }),
		"large blocks":           pool(func(s *api.IPPoolSpec) { s.BlockSize = 19 }),
		"blocks of IPv6":         pool(func(s *api.IPPoolSpec) { s.BlockSize = 122 }),
		"blocks beyond the pool": pool(func(s *api.IPPoolSpec) { s.CIDR, s.BlockSize = "10.244.0.0/28", 26 }),
		"vxlan":                  pool(func(s *api.IPPoolSpec) { s.VXLANMode = api.EncapCrossSubnet }),
		"no such mode":           pool(func(s *api.IPPoolSpec) { s.VXLANMode = "Sometimes" }),
		"ipip":                   pool(func(s *api.IPPoolSpec) { s.IPIPMode = api.EncapAlways }),
		"ipip never":             pool(func(s *api.IPPoolSpec) { s.IPIPMode = api.EncapNever }),
		"uses":                   pool(func(s *api.IPPoolSpec) { s.AllowedUses = []string{"Workload"} }),
		"tunnels":                pool(func(s *api.IPPoolSpec) { s.AllowedUses = []string{"Workload", "Tunnel"} }),
		"manual":                 pool(func(s *api.IPPoolSpec) { s.AssignmentMode = "Manual" }),
		"all namespaces":         pool(func(s *api.IPPoolSpec) { s.NamespaceSelector = "all()" }),
		"some namespaces":        pool(func(s *api.IPPoolSpec) { s.NamespaceSelector = "a == 'b'" }),
		"BGP":                    pool(func(s *api.IPPoolSpec) { s.DisableBGPExport = true }),
		"fabric":                 fabric("default", api.FabricConfigurationSpec{}),
		"another fabric":         fabric("other", api.FabricConfigurationSpec{}),
		"preference":             fabric("default", api.FabricConfigurationSpec{Preference: []string{"host-gw"}}),
		"no such back end":       fabric("default", api.FabricConfigurationSpec{Preference: []string{"pigeon"}}),
		"preferred twice":        fabric("default", api.FabricConfigurationSpec{Preference: []string{"vxlan", "vxlan"}}),
		"VNI":                    fabric("default", api.FabricConfigurationSpec{VXLAN: &api.VXLANConfiguration{VNI: 1 << 24}}),
		"port":                   fabric("default", api.FabricConfigurationSpec{VXLAN: &api.VXLANConfiguration{Port: 1 << 16}}),
		"block":                  block("10.244.1.0/26", "host:node01"),
		"nobody's block":         block("10.244.1.0/26", "node01"),
		"block of no prefix":     block("10.244.1.7/26", "host:node01"),
	} {
		complete := obj.DeepCopyObject().(api.Object)
		api.Default(complete)
		valid := len(api.Validate(complete)) == 0
		created, err := opened.Create(t.Context(), obj)
		if (err == nil) != valid {
			t.Errorf("%s: the API server says %v, Validate %v", name, err, api.Validate(complete))
		}
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: an error of more than one line: %v", name, err)
			}
			continue
		}
		kind, key := api.KindOf(created), api.KeyOf(created)
		if errs := api.Validate(created); len(errs) > 0 {
			t.Errorf("%s: without its defaults: %v", name, errs)
		}
		if b, ok := created.(*api.IPAMBlock); ok {
			b.Spec.Affinity = "host:node02"
			if _, err := opened.Update(t.Context(), b); err == nil {
				t.Error("a block changed hands")
			}
		}
		if err := opened.Delete(t.Context(), kind, key, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// testRefusals: what can't be done is said, and is none of the errors that a
// caller would try again for.
func testRefusals(t *testing.T, s *server) {
	opened := s.Open(t)
	w := api.WorkloadEndpointKind.New().(*api.WorkloadEndpoint)
	w.Namespace, w.Name, w.Spec.Node = "a", "web", "node01"
	svc := api.ServiceKind.New().(*corev1.Service)
	svc.Namespace, svc.Name, svc.Spec.Ports = "nowhere", "web", []corev1.ServicePort{{Port: 80}}
	for what, err := range map[string]error{
		"create an endpoint": func() error { _, err := opened.Create(t.Context(), w); return err }(),
		"update an endpoint": func() error { _, err := opened.Update(t.Context(), w); return err }(),
		"delete an endpoint": opened.Delete(t.Context(), api.WorkloadEndpointKind, api.KeyOf(w), ""),
		"no such namespace":  func() error { _, err := opened.Create(t.Context(), svc); return err }(),
	} {
		if err == nil || errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	code, _, err := s.Do(http.MethodDelete, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ippools.projectcalico.org", "", nil)
	if err != nil || code != http.StatusOK {
		t.Fatal(code, err)
	}
	deadline := time.After(time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := opened.Get(t.Context(), api.IPPoolKind, api.Key{Name: "pool"})
		if err != nil && !errors.Is(err, store.ErrNotFound) && strings.Contains(err.Error(), "deploy/crds") {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("of a kind that is not defined:", err)
		}
	}
}
