package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// tiny is the only pool of IPv4 addresses: 16, of which two are never given out.
const tiny = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: default-ipv4}
spec: {cidr: 10.244.0.0/16, natOutgoing: true, disabled: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: tiny}
spec: {cidr: 10.98.0.0/28, blockSize: %d, natOutgoing: true}
`

const tinyPods = 14

// TestBlocksAreGivenBack fills a pool on one node after another, has its blocks get
// another size, and deletes it.
func TestBlocksAreGivenBack(t *testing.T) {
	c := newCluster(t, nil)
	run := func(node string, count int) error {
		_, err := c.Run(lab.RunRequest{Namespace: "default", Name: "tiny-" + node, Replicas: count, Node: node, Idle: true, Labels: map[string]string{"app": "tiny"}})
		return err
	}
	remove := func() {
		t.Helper()
		if _, err := c.Remove(lab.RemoveRequest{Namespace: "default", Labels: map[string]string{"app": "tiny"}}); err != nil {
			t.Fatal(err)
		}
	}
	exhausted := func(want bool) {
		t.Helper()
		testlab.Eventually(t, patience, func() error {
			out, _ := c.Twill(t.Context(), "", "status") // fails where a condition is
			if got := strings.Contains(out, "PoolExhausted"); got != want {
				return fmt.Errorf("PoolExhausted is reported: %t\n%s", got, out)
			}
			return nil
		})
	}
	c.apply(t, fmt.Sprintf(tiny, 30))
	testlab.Eventually(t, 2*patience, func() error {
		for block, node := range c.blocksIn(t, "10.244.0.0/16") {
			if node != "master" { // has the name server's pod
				return fmt.Errorf("%s has block %s of a pool that is disabled", node, block)
			}
		}
		return nil
	})
	for _, node := range []string{"node01", "node02", "node01"} {
		if err := run(node, tinyPods); err != nil {
			t.Fatalf("the pool is empty, and not all of it can be had on %s: %v", node, err)
		}
		exhausted(false)
		if err := run("master", 1); err == nil {
			t.Error("a pod was attached though the pool is full")
		}
		exhausted(true)
		remove()
		exhausted(false)
	}

	c.twill(t, "", "delete", "ippool", "tiny")
	c.apply(t, fmt.Sprintf(tiny, 29))
	testlab.Eventually(t, 2*patience, func() error {
		for block, owner := range c.blocksIn(t, "10.98.0.0/28") {
			if block.Bits() != 29 {
				return fmt.Errorf("%s still has block %s", owner, block)
			}
		}
		return nil
	})
	if err := run("node02", tinyPods); err != nil {
		t.Errorf("with blocks of another size: %v", err)
	}
	remove()

	c.twill(t, "", "delete", "ippool", "tiny")
	testlab.Eventually(t, 2*patience, func() error {
		if left := c.blocksIn(t, "10.98.0.0/28"); len(left) > 0 {
			return fmt.Errorf("blocks %v of a pool that is gone", left)
		}
		for _, node := range c.Config.NodeNames() {
			state, err := c.State(t.Context(), node)
			if err != nil {
				return err
			}
			for _, line := range state {
				if strings.Contains(line, "10.98.0.") {
					return fmt.Errorf("%s has %s", node, line)
				}
			}
		}
		return nil
	})
	exhausted(false)
}

// blocksIn are the claimed blocks in a range, and their nodes.
func (c *cluster) blocksIn(t *testing.T, within string) map[netip.Prefix]string {
	t.Helper()
	st, err := c.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	list, err := st.List(t.Context(), api.IPAMBlockKind, "")
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[netip.Prefix]string{}
	for _, obj := range list.Items {
		b := obj.(*api.IPAMBlock)
		if prefix := netip.MustParsePrefix(b.Spec.CIDR); netip.MustParsePrefix(within).Overlaps(prefix) {
			blocks[prefix], _ = b.Owner()
		}
	}
	return blocks
}
