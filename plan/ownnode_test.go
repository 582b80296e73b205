package plan

import (
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
)

// TestEgressToOwnNode: the input chain hands pods' packets to their egress policy,
// unless the cluster is configured otherwise.
func TestEgressToOwnNode(t *testing.T) {
	pl := NewPlanner("node01")
	policed := func() bool {
		chain, _ := pl.Flush().Chains.Get("input")
		return slices.ContainsFunc(chain.Rules, func(r Rule) bool {
			return slices.ContainsFunc(r.Statements, func(s Statement) bool {
				d, ok := s.(Dispatch)
				return ok && d.Map == mapFromPod
			})
		})
	}
	configure := func(way api.EgressToOwnNode) {
		pl.Put(&api.FabricConfiguration{ObjectMeta: metav1.ObjectMeta{Name: api.FabricConfigurationName},
			Spec: api.FabricConfigurationSpec{EgressToOwnNode: way}})
	}
	for _, c := range []struct {
		what   string
		change func()
		want   bool
	}{
		{"nothing is configured", func() {}, true},
		{"Allow", func() { configure(api.AllowEgressToOwnNode) }, false},
		{"nothing is said", func() { configure("") }, true},
		{"Allow again", func() { configure(api.AllowEgressToOwnNode) }, false},
		{"the configuration is deleted", func() {
			pl.Delete(api.FabricConfigurationKind, api.Key{Name: api.FabricConfigurationName})
		}, true},
	} {
		c.change()
		if got := policed(); got != c.want {
			t.Errorf("%s: egress policy holds for the own node: %t, want %t", c.what, got, c.want)
		}
	}
}
