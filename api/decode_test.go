package api

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/test/golden"
)

// TestBadManifests: testdata/bad.txt has, for each case, "=== name", a
// manifest, ">>>" and the messages that it must get.
func TestBadManifests(t *testing.T) {
	const file = "testdata/bad.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rewritten strings.Builder
	cases := strings.Split(string(text), "=== ")[1:]
	if len(cases) < 40 {
		t.Errorf("%d cases, want at least 40", len(cases))
	}
	for _, c := range cases {
		name, rest, _ := strings.Cut(c, "\n")
		manifest, want, found := strings.Cut(rest, ">>>\n")
		if !found {
			t.Fatalf("%s: no line with >>>", name)
		}
		var got string
		if _, err := Decode([]byte(manifest), "default"); err != nil {
			got = err.Error() + "\n"
		}
		rewritten.WriteString("=== " + name + "\n" + manifest + ">>>\n" + got)
		if got == "" {
			t.Errorf("%s: no error", name)
		}
		if diff := cmp.Diff(want, got); diff != "" && !golden.Updating() {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
	}
	if golden.Updating() {
		if err := os.WriteFile(file, []byte(rewritten.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGoodManifests: what testdata/good.yaml becomes, defaults included, is
// testdata/good.golden.yaml, and that becomes itself.
func TestGoodManifests(t *testing.T) {
	const file = "testdata/good.golden.yaml"
	input, err := os.ReadFile("testdata/good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got := decodeAndPrint(t, input)
	golden.Check(t, file, string(got))
	if diff := cmp.Diff(string(got), string(decodeAndPrint(t, got))); diff != "" {
		t.Errorf("not stable: (-want +got)\n%s", diff)
	}
}

func decodeAndPrint(t *testing.T, manifest []byte) []byte {
	t.Helper()
	objects, err := Decode(manifest, "default")
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, d := range objects {
		text, err := yaml.Marshal(d.Object)
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, "---\n"...), text...)
	}
	return out
}

// TestGoodObjectsBesideBadOnes: what has no problem comes back even so.
func TestGoodObjectsBesideBadOnes(t *testing.T) {
	got, err := Decode([]byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: fine}\n---\nkind: X"), "default")
	if len(got) != 1 || got[0].Object.GetName() != "fine" || got[0].Kind != NamespaceKind || got[0].Document != 1 {
		t.Errorf("got %v", got)
	}
	var manifest *ManifestError
	if !errors.As(err, &manifest) || len(manifest.Problems) != 1 || manifest.Problems[0].Document != 2 {
		t.Errorf("got %v", err)
	}
}

func TestDecodeForms(t *testing.T) {
	for name, manifest := range map[string]string{
		"YAML": "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n",
		"with Windows line ends, comments and markers": "\ufeff%YAML 1.2\n--- # first\r\napiVersion: v1\r\nkind: Namespace\r\nmetadata: {name: a}\r\n...\r\n---\r\n# nothing\r\n---\r\napiVersion: v1\r\nkind: Namespace\r\nmetadata: {name: b}\r\n---\r\n",
		"JSON values":     `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}` + "\n" + `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}`,
		"flow style YAML": "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n--- {apiVersion: v1, kind: Namespace, metadata: {name: b}}",
		"List":            "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}",
		"NamespaceList":   `{"apiVersion":"v1","kind":"NamespaceList","items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}`,
		"anchors":         "apiVersion: &v v1\nkind: &k Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b, labels: {x: &x '1', y: *x}}",
	} {
		got, err := Decode([]byte(manifest), "default")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var names []string
		for _, d := range got {
			names = append(names, d.Object.GetName())
			if k := d.Object.GetObjectKind().GroupVersionKind(); k.Kind != "Namespace" || k.Version != "v1" {
				t.Errorf("%s: type meta is %v", name, k)
			}
		}
		if strings.Join(names, " ") != "a b" {
			t.Errorf("%s: got %v", name, names)
		}
	}
}

func TestDecodeNothing(t *testing.T) {
	for _, manifest := range []string{"", "\n", "---\n", "# nothing\n---\n...\n", "\ufeff"} {
		if got, err := Decode([]byte(manifest), "default"); err != nil || len(got) != 0 {
			t.Errorf("%q: got %v, %v", manifest, got, err)
		}
	}
}

func TestDecodeNamespace(t *testing.T) {
	got, err := Decode([]byte(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a, namespace: other}
---
apiVersion: v1
kind: Namespace
metadata: {name: a}
`), "shop")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"shop/a", "other/a", "a"} {
		if key := KeyOf(got[i].Object).String(); key != want {
			t.Errorf("object %d is %s, want %s", i, key, want)
		}
	}
}

// FuzzDecode checks that no manifest makes the decoder panic, and that what it
// accepts is valid, and is the same after another round.
func FuzzDecode(f *testing.F) {
	bad, err := os.ReadFile("testdata/bad.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range strings.Split(string(bad), "=== ")[1:] {
		_, c, _ = strings.Cut(c, "\n")
		manifest, _, _ := strings.Cut(c, ">>>")
		f.Add([]byte(manifest))
	}
	good, err := os.ReadFile("testdata/good.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, doc := range strings.Split(string(good), "\n---\n") {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, manifest []byte) {
		objects, err := Decode(manifest, "default")
		if err != nil && err.Error() == "" {
			t.Fatal("an error without a message")
		}
		for _, d := range objects {
			if errs := Validate(d.Object); len(errs) > 0 {
				t.Fatalf("accepted, but not valid: %v", errs)
			}
			again := d.Object.DeepCopyObject().(Object)
			Default(again)
			if diff := cmp.Diff(d.Object, again); diff != "" {
				t.Fatalf("defaults are not stable: %s", diff)
			}
			if errs := ValidateUpdate(again, d.Object); len(errs) > 0 {
				t.Fatalf("no change, but refused: %v", errs)
			}
		}
	})
}

func decodeOne[T Object](t *testing.T, manifest string) T {
	t.Helper()
	got, err := Decode([]byte(manifest), "default")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Fatalf("got %d objects", len(got))
	}
	return got[0].Object.(T)
}

func TestServiceDefaults(t *testing.T) {
	s := decodeOne[*corev1.Service](t, `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  sessionAffinity: ClientIP
  clusterIP: 10.1.0.7
  ports: [{port: 80}]
`)
	want := corev1.ServiceSpec{
		Type:                  corev1.ServiceTypeNodePort,
		ClusterIP:             "10.1.0.7",
		ClusterIPs:            []string{"10.1.0.7"},
		SessionAffinity:       corev1.ServiceAffinityClientIP,
		SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: pointer(int32(10800))}},
		InternalTrafficPolicy: pointer(corev1.ServiceInternalTrafficPolicyCluster),
		ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
		Ports:                 []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
	}
	want.Ports[0].TargetPort.IntVal = 80
	if diff := cmp.Diff(want, s.Spec); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestNetworkPolicyDefaults(t *testing.T) {
	for spec, want := range map[string]string{
		"{podSelector: {}}":                                      "[Ingress]",
		"{podSelector: {}, ingress: []}":                         "[Ingress]",
		"{podSelector: {}, egress: []}":                          "[Ingress]",
		"{podSelector: {}, egress: [{}]}":                        "[Ingress Egress]",
		"{podSelector: {}, policyTypes: [Egress]}":               "[Egress]",
		"{podSelector: {}, policyTypes: [Egress], egress: [{}]}": "[Egress]",
	} {
		p := decodeOne[*networkingv1.NetworkPolicy](t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: "+spec)
		var got []string
		for _, pt := range p.Spec.PolicyTypes {
			got = append(got, string(pt))
		}
		if text := "[" + strings.Join(got, " ") + "]"; text != want {
			t.Errorf("%s: got %s, want %s", spec, text, want)
		}
	}
}

func TestPoolDefaults(t *testing.T) {
	for cidr, want := range map[string]int{"10.244.0.0/16": 26, "10.244.0.0/30": 30, "fd00:10::/64": 122, "fd00:10::/126": 126} {
		p := decodeOne[*IPPool](t, "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\nspec: {cidr: '"+cidr+"'}")
		if p.Spec.BlockSize != want || p.Spec.NodeSelector != "all()" {
			t.Errorf("%s: got %+v, want blockSize %d", cidr, p.Spec, want)
		}
	}
}
