// Package chart holds the Helm chart against deploy/twill.yaml: Helm's own engine
// renders it, and by default the objects are the same.
package chart

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/yaml"
)

const dir = "../../deploy"

// objects are those of a manifest, by what they are.
func objects(t *testing.T, manifests ...string) map[string]any {
	t.Helper()
	all := map[string]any{}
	for _, manifest := range manifests {
		for document := range strings.SplitSeq(manifest, "\n---") {
			var o struct {
				Kind     string
				Metadata struct{ Namespace, Name string }
			}
			var whole any
			for _, into := range []any{&o, &whole} {
				if err := yaml.Unmarshal([]byte(document), into); err != nil {
					t.Fatalf("%v:\n%s", err, document)
				}
			}
			if whole == nil {
				continue
			}
			key := o.Kind + " " + o.Metadata.Namespace + "/" + o.Metadata.Name
			if all[key] != nil {
				t.Errorf("%s is there twice", key)
			}
			all[key] = whole
		}
	}
	return all
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(dir + "/chart/twill")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

func render(t *testing.T, values string) (map[string]any, error) {
	t.Helper()
	parsed, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	c := load(t)
	release := chartutil.ReleaseOptions{Name: "twill", Namespace: "kube-system"}
	all, err := chartutil.ToRenderValues(c, parsed, release, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	var manifests []string
	for _, text := range files {
		manifests = append(manifests, text)
	}
	return objects(t, manifests...), nil
}

func TestChartMakesTheSameObjects(t *testing.T) {
	text, err := os.ReadFile(dir + "/twill.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := objects(t, string(text))
	got, err := render(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(want) < 10 {
		t.Fatalf("only %d objects are in twill.yaml", len(want))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("twill.yaml (-) and the chart (+) differ:\n%s", diff)
	}
	files, err := os.ReadDir(dir + "/crds")
	if err != nil {
		t.Fatal(err)
	}
	if defined := load(t).CRDObjects(); len(defined) != len(files) {
		t.Errorf("the chart has %d definitions of custom resources, want %d", len(defined), len(files))
	}
}

func TestValues(t *testing.T) {
	got, err := render(t, `
image: {repository: registry.example.com/twill, tag: v1, pullPolicy: Always}
podCIDR: 10.10.0.0/16,fd00::/56
services: off
settings: {TWILL_METRICS_ADDRESS: ":9841"}
resources: {agent: {limits: {memory: 1Gi}}, controller: {requests: null}}
tolerations: []
`)
	if err != nil {
		t.Fatal(err)
	}
	at := func(v any, path ...any) any {
		for _, step := range path {
			switch step := step.(type) {
			case string:
				v = v.(map[string]any)[step]
			case int:
				v = v.([]any)[step]
			}
		}
		return v
	}
	want := map[string]any{"POD_CIDR": "10.10.0.0/16,fd00::/56", "TWILL_SERVICES": "off", "TWILL_LOG_LEVEL": "info", "TWILL_METRICS_ADDRESS": ":9841"}
	if diff := cmp.Diff(want, at(got["ConfigMap kube-system/twill-config"], "data")); diff != "" {
		t.Error(diff)
	}
	for _, key := range []string{"DaemonSet kube-system/twill-agent", "Deployment kube-system/twill-controller"} {
		pod := at(got[key], "spec", "template", "spec")
		if at(pod, "tolerations") != nil {
			t.Errorf("%s has tolerations", key)
		}
		container := at(pod, "containers", 0)
		if at(container, "image") != "registry.example.com/twill:v1" || at(container, "imagePullPolicy") != "Always" {
			t.Errorf("%s has the image %v, %v", key, at(container, "image"), at(container, "imagePullPolicy"))
		}
	}
	resources := at(got["DaemonSet kube-system/twill-agent"], "spec", "template", "spec", "containers", 0, "resources")
	if diff := cmp.Diff(map[string]any{"requests": map[string]any{"cpu": "50m", "memory": "64Mi"}, "limits": map[string]any{"memory": "1Gi"}}, resources); diff != "" {
		t.Error(diff)
	}
}

func TestServices(t *testing.T) {
	for value, want := range map[string]any{"auto": nil, "on": "on", "off": "off", "'on'": "on", "'off'": "off"} {
		got, err := render(t, "services: "+value)
		if err != nil {
			t.Fatal(err)
		}
		data := got["ConfigMap kube-system/twill-config"].(map[string]any)["data"].(map[string]any)
		if data["TWILL_SERVICES"] != want {
			t.Errorf("services: %s makes TWILL_SERVICES %v, want %v", value, data["TWILL_SERVICES"], want)
		}
	}
}

func TestSchemaRefuses(t *testing.T) {
	for _, values := range []string{
		"podCidr: 10.10.0.0/16", "podCIDR: 10.10.0.0", "podCIDR: [10.10.0.0/16]", "image: {pullPolicy: Sometimes}", "image: {repository: ''}",
		"settings: {LOG_LEVEL: debug}", "settings: {TWILL_LOG_LEVEL: 1}", "tolerations: none", "services: sometimes", "resources: {cpu: 1}",
	} {
		if _, err := render(t, values); err == nil {
			t.Errorf("%s is taken", values)
		}
	}
}
