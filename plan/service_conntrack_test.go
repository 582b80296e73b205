package plan

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/twill-net/twill/api"
)

// TestConntrackSettings: as kube-proxy's, from what the node's object says, and
// none where Services are left to somebody else.
func TestConntrackSettings(t *testing.T) {
	const established, closeWait = "net/netfilter/nf_conntrack_tcp_timeout_established", "net/netfilter/nf_conntrack_tcp_timeout_close_wait"
	pl := NewPlanner("here")
	check := func(what, connections string) {
		t.Helper()
		want := map[string]string{ConntrackMax: connections, established: "86400", closeWait: "3600"}
		p := pl.Flush()
		for path, value := range want {
			got, ok := p.Sysctls.Get(path)
			if connections == "" && ok || connections != "" && got != value {
				t.Errorf("%s: %s is %q, want %q", what, path, got, value)
			}
		}
	}
	node := func(name string, cpus int64) {
		n := api.NodeKind.New().(*corev1.Node)
		n.Name = name
		n.Status.Capacity = corev1.ResourceList{corev1.ResourceCPU: *resource.NewQuantity(cpus, resource.DecimalSI)}
		pl.Put(n)
	}
	check("of a node that is not known", "131072")
	node("there", 64)
	node("here", 2)
	check("of a small node", "131072")
	node("here", 16)
	check("of a large node", "524288")
	pl.SetServices(false)
	check("left to another", "")
	node("here", 8)
	check("still left to another", "")
	pl.SetServices(true)
	check("taken back", "262144")
	pl.Delete(api.NodeKind, api.Key{Name: "here"})
	check("of a node that is gone", "131072")
}
