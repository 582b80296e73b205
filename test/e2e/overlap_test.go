package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// TestPoolOverNodes: a pool over the addresses of the nodes is refused by apply.
// Where another client writes it all the same, with a block of it, no node is cut
// off, each agent reports it, and all is well again when both are deleted.
func TestPoolOverNodes(t *testing.T) {
	web := []lab.Port{{Port: 80}}
	c := newCluster(t, []pod{{name: "default/here", node: "node01", ports: web}, {name: "default/there", node: "node02", ports: web}}, 9000)
	reach := func() error {
		for _, from := range []string{"node/master", "node/node01", "node/node02", "default/here", "outside"} {
			for _, to := range []string{"node/master", "node/node01", "node/node02", "default/there"} {
				port := uint16(9000)
				if to == "default/there" {
					port = 80
				}
				if from == "outside" && port == 80 {
					continue
				}
				for _, a := range c.addresses[to] {
					if got := testlab.Probe(c.tasks[from], "tcp", netip.AddrPortFrom(a, port), time.Second); got != testlab.Open {
						return fmt.Errorf("%s to %s (%s): %s", from, to, a, got)
					}
				}
			}
		}
		return nil
	}
	testlab.Eventually(t, patience, reach)
	nodes := netip.PrefixFrom(c.Config.NodeAddresses(0)[0], 24).Masked()
	manifest := fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: over-nodes}\nspec: {cidr: %s, blockSize: 28}\n", nodes)
	if out, err := c.Twill(t.Context(), manifest, "apply", "-f", "-"); err == nil || !strings.Contains(err.Error(), "of node node01") {
		t.Errorf("apply took a pool over the nodes: %s%v", out, err)
	}

	st, err := c.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	pool := api.IPPoolKind.New().(*api.IPPool)
	pool.Name, pool.Spec.CIDR, pool.Spec.BlockSize = "over-nodes", nodes.String(), 28
	api.Default(pool)
	block := api.IPAMBlockKind.New().(*api.IPAMBlock)
	block.Name, block.Spec.CIDR, block.Spec.Affinity = "over-nodes", netip.PrefixFrom(nodes.Addr(), 28).String(), api.AffinityOf("node01")
	for _, obj := range []api.Object{pool, block} {
		if _, err := st.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
	testlab.Eventually(t, patience, func() error {
		out, _ := c.Twill(t.Context(), "", "status") // fails: something is wrong
		if strings.Count(out, "PoolOverlap  node") != len(c.Config.NodeNames()) || strings.Count(out, "no route to this block of node01") != len(c.Config.NodeNames()) {
			return fmt.Errorf("the pool is not reported by each node:\n%s", out)
		}
		return nil
	})
	if err := reach(); err != nil {
		t.Error(err)
	}
	for _, node := range c.Config.NodeNames() {
		state, err := c.State(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(state, func(line string) bool { return strings.Contains(line, block.Spec.CIDR+" ") }); i >= 0 {
			t.Errorf("%s routes %s: %s", node, block.Spec.CIDR, state[i])
		}
	}

	for _, obj := range []api.Object{pool, block} {
		if err := st.Delete(t.Context(), api.KindOf(obj), api.KeyOf(obj), ""); err != nil {
			t.Fatal(err)
		}
	}
	testlab.Eventually(t, patience, func() error {
		out, err := c.Twill(t.Context(), "", "status")
		if err != nil {
			return fmt.Errorf("after the pool was deleted: %w\n%s", err, out)
		}
		return nil
	})
	if err := reach(); err != nil {
		t.Error(err)
	}
}
