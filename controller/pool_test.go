package controller

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store/memory"
)

func (c *cluster) wantPools(want ...string) {
	c.Helper()
	var got []string
	for _, obj := range c.list(api.IPPoolKind) {
		got = append(got, obj.GetName()+" "+obj.(*api.IPPool).Spec.CIDR)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		c.Errorf("pools %v, want %v", got, want)
	}
}

func TestFirstPools(t *testing.T) {
	config := Config{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/56")}}
	inCluster(t, func(c *cluster) {
		c.control(config)
		c.wantPools("default-ipv4 10.244.0.0/16", "default-ipv6 fd00:244::/56")
	})
	inCluster(t, func(c *cluster) {
		mine := &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: api.IPPoolSpec{CIDR: "192.168.0.0/16"}}
		api.Default(mine)
		c.create(mine)
		c.control(config)
		c.wantPools("default-ipv6 fd00:244::/56", "mine 192.168.0.0/16")
	})
	inCluster(t, func(c *cluster) {
		c.control(single)
		c.wantPools()
	})
	inCluster(t, func(c *cluster) {
		node := api.NodeKind.New().(*corev1.Node)
		node.Name = "n"
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.244.3.4"}}
		c.create(node)
		c.control(config)
		c.wantPools() // neither: the first would cut the node off
	})
	inCluster(t, func(c *cluster) {
		c.SetDown(true)
		c.control(config)
		c.SetDown(false)
		c.settle()
		c.wantPools("default-ipv4 10.244.0.0/16", "default-ipv6 fd00:244::/56")
	})
}

// orchestrated is a cluster in which others make services' addresses and slices.
type orchestrated struct{ *memory.Store }

func (orchestrated) Orchestrator() string { return "a test" }

func (orchestrated) ServiceProxy(context.Context) (bool, error) { return false, nil }

func (orchestrated) ServiceRanges(context.Context) ([]netip.Prefix, error) { return nil, nil }

func TestUnderAnOrchestratorOnlyWhatIsOursIsTouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{T: t, Store: memory.New()}
		c.create(node("node01"), node("node02"), block("b1", "node01"), block("b2", "node02"), svc("web"), wep("pod", "web", 1))
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- New(orchestrated{c.Store}, Config{ServiceCIDRs: single.ServiceCIDRs}).Run(ctx) }()
		c.settle()
		c.remove(node("node01"))
		c.settle()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := c.list(api.IPAMBlockKind); len(got) != 1 || got[0].GetName() != "b2" {
			t.Errorf("blocks %v", got)
		}
		if got := len(c.list(api.WorkloadEndpointKind)); got != 1 {
			t.Errorf("%d endpoints: the node's were deleted", got)
		}
		if got := get(c, svc("web")); got.Spec.ClusterIP != "" {
			t.Errorf("the service was given %s", got.Spec.ClusterIP)
		}
		if got := len(c.list(api.EndpointSliceKind)) + len(c.list(api.NamespaceKind)); got != 0 {
			t.Errorf("%d slices and namespaces were made", got)
		}
	})
}
