package cli

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
)

// TestPlanOfAKubernetesNode: the API server knows of a pod neither its interface
// nor its MAC, and no address before it has started.
func TestPlanOfAKubernetesNode(t *testing.T) {
	term := newTerminal()
	create := func(obj api.Object) {
		t.Helper()
		if _, err := term.store.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
	node := api.NodeKind.New().(*corev1.Node)
	node.Name = "node01"
	node.Annotations = map[string]string{api.UnderlayAnnotation: `{"Link":"eth0","MTU":1500,"Prefixes":["172.16.10.11/24"]}`}
	create(node)
	for name, networks := range map[string][]string{"web": {"10.244.0.7/32"}, "starting": nil} {
		w := api.WorkloadEndpointKind.New().(*api.WorkloadEndpoint)
		w.Namespace, w.Name = "default", name
		w.Spec = api.WorkloadEndpointSpec{Node: "node01", Pod: name, IPNetworks: networks}
		create(w)
	}
	got := term.output(nil, "plan", "node01")
	for _, want := range []string{"\nroute 10.244.0.7/32 dev tw-", "warning: of 1 pods only the node knows interface and MAC", "table inet twill {"} {
		if !strings.Contains(got, want) {
			t.Errorf("it does not say %q:\n%s", want, got)
		}
	}
	if strings.Count(got, "\nlink tw-") != 1 || strings.Contains(got, "[exit") {
		t.Errorf("%s", got)
	}
}
