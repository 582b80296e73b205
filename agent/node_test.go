package agent

import (
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/store/memory"
)

// TestNodeSaysHowManyCPUsItHas: planning asks for it, and where there is a kubelet
// it is the kubelet that says so.
func TestNodeSaysHowManyCPUsItHas(t *testing.T) {
	for _, test := range []struct {
		publisher *publisher
		want      int64
	}{
		{newPublisher(memory.New(), "node01", nil), int64(runtime.NumCPU())},
		{newPublisher(&proxied{Store: memory.New()}, "node01", nil), 0},
	} {
		a := &Agent{health: &health.Tracker{}, publisher: test.publisher}
		n := api.NodeKind.New().(*corev1.Node)
		a.describeNode(n, nil, true, fabric.Underlay{})
		if got := n.Status.Capacity.Cpu().Value(); got != test.want {
			t.Errorf("orchestrated %t: %d CPUs, want %d", test.publisher.orchestrated, got, test.want)
		}
	}
}
