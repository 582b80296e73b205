package install_test

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/install"
	"github.com/twill-net/twill/store/kube"
	"github.com/twill-net/twill/test/golden"
	"github.com/twill-net/twill/test/testkube"
)

// world is an API server whose kubelets and controllers the test plays.
type world struct {
	*testing.T
	server  *testkube.Server
	cluster *install.Cluster
	told    []string
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, server: testkube.Start(t)}
	var err error
	w.cluster, err = install.Open(kube.Config{Kubeconfig: w.server.Kubeconfig()}, func(line string) { w.told = append(w.told, line) })
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) do(method, path, object string, want int) {
	w.Helper()
	contentType := "application/yaml"
	if method == http.MethodPatch {
		contentType = "application/merge-patch+json"
		text, err := yaml.YAMLToJSON([]byte(object))
		if err != nil {
			w.Fatal(err)
		}
		object = string(text)
	}
	code, body, err := w.server.Do(method, path, contentType, []byte(object))
	if err != nil || code != want {
		w.Fatalf("%s %s: %d %s %v", method, path, code, body, err)
	}
}

func (w *world) create(path, object string) {
	w.Helper()
	w.do(http.MethodPost, path, object, http.StatusCreated)
}

func (w *world) patch(path, object string) {
	w.Helper()
	w.do(http.MethodPatch, path, object, http.StatusOK)
}

// node makes a node with an address, ready or not heard of.
func (w *world) node(name, address, ready string) {
	w.Helper()
	w.create("/api/v1/nodes", fmt.Sprintf("{apiVersion: v1, kind: Node, metadata: {name: %s, annotations: {twill.io/underlay: '{}', other: stays}}, spec: {podCIDRs: [10.20.%s.0/24]}}",
		name, strings.TrimPrefix(name, "node")))
	w.patch("/api/v1/nodes/"+name+"/status", fmt.Sprintf("{status: {addresses: [{type: InternalIP, address: %s}], conditions: [{type: Ready, status: '%s', reason: X}]}}", address, ready))
}

const daemonSet = `{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: %[1]s, namespace: %[2]s}, spec: {selector: {matchLabels: {a: %[1]s}},
  template: {metadata: {labels: {a: %[1]s}}, spec: {containers: [{name: c, image: i}]}}}}`

func (w *world) planned(o install.Options) (*install.Plan, string) {
	w.Helper()
	p, err := w.cluster.Plan(w.Context(), o)
	if err != nil {
		w.Fatal(err)
	}
	var b strings.Builder
	p.Print(&b)
	return p, strings.ReplaceAll(strings.ReplaceAll(b.String(), p.Facts.Server, "https://SERVER"), p.Facts.Version, "VERSION")
}

// TestPlan holds what is said of clusters against a file: one that has everything
// in the way, one that has nothing, and one in which Twill is already.
func TestPlan(t *testing.T) {
	w := newWorld(t)
	w.node("node1", "172.16.10.11", "True")
	w.node("node2", "172.16.10.12", "False")
	w.create("/api/v1/namespaces", "{apiVersion: v1, kind: Namespace, metadata: {name: kube-flannel}}")
	for _, d := range []struct{ name, namespace string }{{"kube-proxy", "kube-system"}, {"kube-flannel-ds", "kube-flannel"}} {
		w.create("/apis/apps/v1/namespaces/"+d.namespace+"/daemonsets", fmt.Sprintf(daemonSet, d.name, d.namespace))
	}
	var got strings.Builder
	say := func(title, text string) { fmt.Fprintf(&got, "# %s\n%s", title, text) }
	overlapping := []netip.Prefix{netip.MustParsePrefix("172.16.0.0/16"), netip.MustParsePrefix("10.1.4.0/24")}
	_, text := w.planned(install.Options{PodCIDRs: overlapping, Settings: map[string]string{"TWILL_SERVICES": "on"}})
	say("everything is in the way", text)

	w.do(http.MethodDelete, "/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds", "", http.StatusOK)
	p, text := w.planned(install.Options{Image: "registry.example.com/twill:v1", Settings: map[string]string{"TWILL_LOG_LEVEL": "debug"}})
	say("nothing is in the way", text)
	if err := w.cluster.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	w.create("/apis/projectcalico.org/v3/ippools", "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: default}, spec: {cidr: 10.20.0.0/16}}")
	_, text = w.planned(install.Options{})
	say("Twill is there", text)
	w.checkApplied()
	w.applyAgain(p)

	golden.Check(t, "testdata/plan.txt", got.String())
}

// applyAgain: an object that is as it was is not called updated, even if its
// controllers changed its status or annotations.
func (w *world) applyAgain(p *install.Plan) {
	w.Helper()
	const agents = "/apis/apps/v1/namespaces/kube-system/daemonsets/twill-agent"
	w.patch(agents+"/status", "{status: {currentNumberScheduled: 1, numberMisscheduled: 0, desiredNumberScheduled: 1, numberReady: 1}}")
	w.patch("/api/v1/namespaces/kube-system/configmaps/twill-config", "{data: {TWILL_LOG_LEVEL: warn, TWILL_OTHER: stays}}")
	w.told = nil
	if err := w.cluster.Apply(w.Context(), p); err != nil {
		w.Fatal(err)
	}
	for _, line := range w.told {
		if changed := line == "updated ConfigMap kube-system/twill-config"; !changed && !strings.HasPrefix(line, "unchanged ") {
			w.Errorf("nothing changed, and it says %q", line)
		}
	}
	if !slices.Contains(w.told, "updated ConfigMap kube-system/twill-config") {
		w.Errorf("what changed is not told: %q", w.told)
	}
}

// checkApplied looks whether what was asked for is in the API.
func (w *world) checkApplied() {
	w.Helper()
	for path, wants := range map[string][]string{
		"/api/v1/namespaces/kube-system/configmaps/twill-config":            {`"POD_CIDR":"10.20.0.0/16"`, `"TWILL_LOG_LEVEL":"debug"`},
		"/apis/apps/v1/namespaces/kube-system/daemonsets/twill-agent":       {`"image":"registry.example.com/twill:v1"`},
		"/apis/apps/v1/namespaces/kube-system/deployments/twill-controller": {`"image":"registry.example.com/twill:v1"`},
	} {
		_, body, err := w.server.Do(http.MethodGet, path, "", nil)
		for _, want := range wants {
			if err != nil || !strings.Contains(string(body), want) {
				w.Errorf("%s: no %s in %s %v", path, want, body, err)
			}
		}
	}
}

const agents = "/apis/apps/v1/namespaces/kube-system/daemonsets/twill-agent"

// TestWait: what is not ready is named, with what a kubelet says about the agent;
// nobody waits for what is ready.
func TestWait(t *testing.T) {
	w := newWorld(t)
	w.node("node1", "172.16.10.11", "True")
	w.node("node2", "172.16.10.12", "False")
	p, _ := w.planned(install.Options{})
	if err := w.cluster.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	w.create("/api/v1/namespaces/kube-system/pods", "{apiVersion: v1, kind: Pod, metadata: {name: twill-agent-x, namespace: kube-system, labels: {app.kubernetes.io/name: twill}}, spec: {nodeName: node2, containers: [{name: c, image: i}]}}")
	w.patch("/api/v1/namespaces/kube-system/pods/twill-agent-x/status", "{status: {containerStatuses: [{name: c, image: i, imageID: '', ready: false, restartCount: 0, state: {waiting: {reason: ErrImagePull, message: no such image}}}]}}")
	const network = "{type: NetworkUnavailable, status: 'False', reason: TwillIsUp}"
	w.patch("/api/v1/nodes/node1/status", "{status: {conditions: [{type: Ready, status: 'True'}, "+network+"]}}")
	err := w.cluster.Wait(t.Context(), 10*time.Second)
	if err == nil || !strings.Contains(err.Error(), "nodes that are not: node2;") || !strings.Contains(err.Error(), "pod twill-agent-x on node2: ErrImagePull: no such image") {
		t.Errorf("got %v", err)
	}
	w.patch("/api/v1/nodes/node2/status", "{status: {conditions: [{type: Ready, status: 'True'}, "+network+"]}}")
	w.patch(agents+"/status", "{status: {observedGeneration: 1, desiredNumberScheduled: 2, currentNumberScheduled: 2, updatedNumberScheduled: 2, numberReady: 2, numberMisscheduled: 0}}")
	if err := w.cluster.Wait(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	if !slices.Contains(w.told, "node node2 is ready (2 of 2)") {
		t.Errorf("told %q", w.told)
	}
}

// TestUninstall: a node that can't be cleaned, or was not, is told of, and
// everything is removed from the API all the same.
func TestUninstall(t *testing.T) {
	w := newWorld(t)
	for name, ready := range map[string]string{"node1": "True", "node2": "True", "node3": "Unknown"} {
		w.node(name, "172.16.10.1"+strings.TrimPrefix(name, "node"), ready)
	}
	p, _ := w.planned(install.Options{Image: "registry.example.com/twill:v1"})
	if err := w.cluster.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	w.create("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: twill-controller, namespace: kube-system}}")
	w.create("/api/v1/namespaces/default/services", "{apiVersion: v1, kind: Service, metadata: {name: shop}, spec: {ports: [{port: 80}]}}")
	const condition = "{type: %s, status: 'False', reason: R, message: '', lastTransitionTime: '2026-01-01T00:00:00Z'}"
	w.patch("/api/v1/namespaces/default/services/shop/status", fmt.Sprintf("{status: {conditions: ["+condition+", "+condition+"]}}", "twill.io/Programmed", "other.io/Ready"))
	removal, err := w.cluster.Removal(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if removal.Image != "registry.example.com/twill:v1" || !slices.Equal(removal.Nodes, []string{"node1", "node2"}) || !slices.Equal(removal.Silent, []string{"node3"}) {
		t.Errorf("%+v", removal)
	}
	ctx, stop := context.WithCancel(t.Context())
	played := make(chan struct{})
	go func() {
		defer close(played)
		w.playKubelets(ctx, map[string]string{"node1": "Succeeded", "node2": "Failed"})
	}()
	err = w.cluster.Uninstall(t.Context(), removal, time.Minute)
	stop()
	<-played
	for _, want := range []string{"nodes node3 were not cleaned", "node node2 is not clean"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if !slices.Contains(w.told, "node node1 is clean") {
		t.Errorf("told %q", w.told)
	}
	for _, path := range []string{
		agents, "/apis/apps/v1/namespaces/kube-system/deployments/twill-controller", "/api/v1/namespaces/kube-system/configmaps/twill-config",
		"/apis/rbac.authorization.k8s.io/v1/clusterroles/twill-agent", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ippools.projectcalico.org",
		"/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/twill-controller",
	} {
		if code, body, err := w.server.Do(http.MethodGet, path, "", nil); code != http.StatusNotFound && !strings.Contains(string(body), "deletionTimestamp") {
			t.Errorf("%s: %d %v", path, code, err)
		}
	}
	_, body, err := w.server.Do(http.MethodGet, "/api/v1/nodes/node1", "", nil)
	if err != nil || strings.Contains(string(body), "twill.io") || !strings.Contains(string(body), `"other":"stays"`) {
		t.Errorf("%s %v", body, err)
	}
	_, body, err = w.server.Do(http.MethodGet, "/api/v1/namespaces/default/services/shop", "", nil)
	if err != nil || strings.Contains(string(body), `"type":"twill.io`) || !strings.Contains(string(body), `"type":"other.io/Ready"`) {
		t.Errorf("%s %v", body, err)
	}
	if again, err := w.cluster.Removal(t.Context(), "i"); err != nil || len(again.Exist) > 0 {
		t.Errorf("left: %+v, %v", again, err)
	}
}

// playKubelets ends cleaning pods as kubelets would.
func (w *world) playKubelets(ctx context.Context, phases map[string]string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for node, phase := range phases {
			patch := fmt.Sprintf(`{"status":{"phase":%q}}`, phase)
			// There is none before it was made, and none after.
			_, _, _ = w.server.Do(http.MethodPatch, "/api/v1/namespaces/kube-system/pods/twill-cleanup-"+node+"/status", "application/merge-patch+json", []byte(patch))
		}
	}
}
