package e2e

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// waitRounds is how often a policy comes and goes.
const waitRounds = 6

// TestApplyWaitsUntilInForce probes as soon as the command returns: once, without
// trying again.
func TestApplyWaitsUntilInForce(t *testing.T) {
	c := newCluster(t, []pod{
		{"default/server", "node01", map[string]string{"app": "server"}, []lab.Port{{Port: 80}}},
		{"default/client", "node02", nil, nil},
	})
	server := func(v6 bool) netip.AddrPort {
		for _, a := range c.addresses["default/server"] {
			if a.Is6() == v6 {
				return netip.AddrPortFrom(a, 80)
			}
		}
		t.Fatal("the pod has not both families")
		return netip.AddrPort{}
	}
	probe := func(round int, want string) {
		t.Helper()
		for _, v6 := range []bool{false, true} {
			if got := testlab.Probe(c.tasks["default/client"], "tcp", server(v6), silence); got != want {
				t.Errorf("round %d: %s is %s, want %s", round, server(v6), got, want)
			}
		}
	}
	const deny = `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {matchLabels: {app: server}}}}`
	for round := range waitRounds {
		if out := c.twill(t, deny, "apply", "--wait", "-f", "-"); !strings.Contains(out, "in force on 3 nodes") {
			t.Errorf("got %s", out)
		}
		probe(round, timeout)
		c.twill(t, "", "delete", "netpol", "deny", "--wait")
		probe(round, open)
	}
	c.stoppedAgent(t, "node01", func() {
		_, err := c.Twill(t.Context(), deny, "apply", "--wait=2s", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), "not in force on node node01 after 2s") || strings.Contains(err.Error(), "node02") {
			t.Errorf("one agent stands still: %v", err)
		}
		if out, _ := c.Twill(t.Context(), "", "status"); strings.Count(out, "(behind)") != 1 {
			t.Errorf("one node is behind, and status says\n%s", out)
		}
	})
	c.twill(t, deny, "apply", "--wait", "-f", "-")
	probe(waitRounds, timeout)
}

// stoppedAgent calls f while a node's agent stands still.
func (c *cluster) stoppedAgent(t *testing.T, node string, f func()) {
	t.Helper()
	status, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range status.Nodes {
		if n.Name != node {
			continue
		}
		if err := syscall.Kill(n.Agent.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Kill(n.Agent.PID, syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}()
		f()
		return
	}
	t.Fatalf("no node %s", node)
}
