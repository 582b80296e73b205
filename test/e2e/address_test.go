package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// TestNodeAddressChanges gives a node other addresses while its agent runs.
func TestNodeAddressChanges(t *testing.T) {
	web := []lab.Port{{Port: 80}}
	c := newCluster(t, []pod{{name: "default/here", node: "node01", ports: web}, {name: "default/there", node: "node02", ports: web}})
	reach := func() error {
		for from, to := range map[string]string{"default/here": "default/there", "default/there": "default/here"} {
			for _, a := range c.addresses[to] {
				if got := testlab.Probe(c.tasks[from], "tcp", netip.AddrPortFrom(a, 80), time.Second); got != testlab.Open {
					return fmt.Errorf("%s to %s: %s", from, a, got)
				}
			}
		}
		return nil
	}
	testlab.Eventually(t, patience, reach)

	was := c.Config.NodeAddresses(2)
	now := []string{"172.16.10.99", "fd00:172:16:10::99"}
	out, err := c.At(t.Context(), lab.Node("node02"), "sh", "-c", `ip address flush dev eth0 scope global; ip address add $0/24 dev eth0
		ip -6 address add $1/64 dev eth0 nodad; ip route add default via 172.16.10.1; ip -6 route replace default via fd00:172:16:10::1`, now[0], now[1])
	if err != nil {
		t.Fatalf("%s%v", out, err)
	}
	// The agent's connection to etcd was from the old address: it notices after a while.
	took := testlab.Eventually(t, 3*patience, func() error {
		for _, node := range c.Config.NodeNames() {
			state, err := c.State(t.Context(), node)
			if err != nil {
				return err
			}
			text := strings.Join(state, "\n")
			for i, a := range was {
				if strings.Contains(text, a.String()) || !strings.Contains(text, now[i]) {
					return fmt.Errorf("%s has %s, or lacks %s:\n%s", node, a, now[i], text)
				}
			}
		}
		return nil
	})
	took += testlab.Eventually(t, patience, reach)
	t.Logf("all nodes sent to the new addresses after %s", took.Round(time.Millisecond))
	if out := c.twill(t, "", "status"); !strings.Contains(out, "nothing is wrong") {
		t.Error(out)
	}
}
