package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// leaseRunsOut is how long after its last renewal an agent counts as gone, and how
// long it takes until that is noticed.
const leaseRunsOut = 25 * time.Second

// output collects what a program prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// agentAs runs an agent on a node of the lab under a name that may be another's.
func (c *cluster) agentAs(t *testing.T, node, name string, args ...string) (log *output, stop func()) {
	t.Helper()
	argv := append([]string{"twill", "agent", "--node-name", name, "--metrics-address", "",
		"--etcd-endpoints", "http://" + netip.AddrPortFrom(c.Config.NodeAddresses(0)[0], 2379).String()}, args...)
	cmd, err := c.Command(context.Background(), lab.Node(node), argv...)
	if err != nil {
		t.Fatal(err)
	}
	log = &output{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	return log, stop
}

func (c *cluster) open(from, to string) error {
	for _, a := range c.addresses[to] {
		if got := testlab.Probe(c.tasks[from], "tcp", netip.AddrPortFrom(a, 80), time.Second); got != testlab.Open {
			return fmt.Errorf("%s to %s: %s", from, a, got)
		}
	}
	return nil
}

// wrong returns when the status says what is wanted of it.
func (c *cluster) wrong(t *testing.T, within time.Duration, wanted ...string) {
	t.Helper()
	testlab.Eventually(t, within, func() error {
		out, _ := c.Twill(t.Context(), "", "status")
		for _, want := range wanted {
			if !strings.Contains(out, want) {
				return fmt.Errorf("no %q in\n%s", want, out)
			}
		}
		return nil
	})
}

// TestHostIsRenamed: after a host got another name there are two Nodes with its
// address. Pods of the living one can be reached at once, and it is reported.
func TestHostIsRenamed(t *testing.T) {
	web := []lab.Port{{Port: 80}}
	c := newCluster(t, []pod{{name: "default/there", node: "master", ports: web}, {name: "default/before", node: "node01", ports: web}})
	if err := c.Control(lab.ControlRequest{Process: "agent", Node: "node01", Action: lab.Stop}); err != nil {
		t.Fatal(err)
	}
	_, stop := c.agentAs(t, "node01", "node01.example.com")
	c.addPod(t, pod{name: "default/after", node: "node01", ports: web})
	took := testlab.Eventually(t, patience, func() error { return c.open("default/there", "default/after") })
	t.Logf("a pod of the renamed host was reached after %s", took.Round(time.Millisecond))
	if err := c.open("default/there", "default/before"); err != nil {
		t.Error(err)
	}
	c.wrong(t, patience, "NodeAddressTaken  node node01.example.com",
		"node01: it has "+c.Config.NodeAddresses(1)[0].String()+" and "+c.Config.NodeAddresses(1)[1].String()+", too; its agent ran on this machine")

	// It gets its old name back: now the other Node is the one that is left over.
	stop()
	if err := c.Control(lab.ControlRequest{Process: "agent", Node: "node01", Action: lab.Start}); err != nil {
		t.Fatal(err)
	}
	testlab.Eventually(t, patience, func() error { return c.open("default/there", "default/before") })
	c.wrong(t, patience, "NodeAddressTaken  node node01\n")
	c.twill(t, "", "delete", "node", "node01.example.com")
	testlab.Eventually(t, patience, func() error {
		out, _ := c.Twill(t.Context(), "", "status")
		if strings.Contains(out, "NodeAddressTaken") {
			return fmt.Errorf("still reported:\n%s", out)
		}
		return nil
	})
}

// TestOneNameOnTwoMachines: an agent whose name a living agent of another machine
// has does nothing, and both say so.
func TestOneNameOnTwoMachines(t *testing.T) {
	web := []lab.Port{{Port: 80}}
	c := newCluster(t, []pod{{name: "default/there", node: "node01", ports: web}, {name: "default/here", node: "master", ports: web}})
	before := c.twill(t, "", "get", "nodes,blocks", "-o", "wide")
	dir := t.TempDir()
	log, stop := c.agentAs(t, "node02", "master", "--state-dir", dir+"/state", "--run-dir", dir+"/run")
	c.wrong(t, patience, "NodeNameTaken  node master", "wants to be node master, too")
	testlab.Eventually(t, patience, func() error {
		if text := log.String(); !strings.Contains(text, "another machine has this node's name") {
			return fmt.Errorf("the agent does not say why it does nothing: %s", text)
		}
		return nil
	})
	if after := c.twill(t, "", "get", "nodes,blocks", "-o", "wide"); ageless(after) != ageless(before) {
		t.Errorf("nodes and blocks were\n%s\nand are\n%s", before, after)
	}
	if err := c.open("default/there", "default/here"); err != nil {
		t.Error(err)
	}
	stop()
	testlab.Eventually(t, leaseRunsOut, func() error {
		_, err := c.Twill(t.Context(), "", "status")
		return err
	})
}

// ageless is a table without the column of ages.
func ageless(table string) string {
	var out strings.Builder
	for line := range strings.Lines(table) {
		var words []string
		for _, word := range strings.Fields(line) {
			if !strings.HasSuffix(word, "s") && !strings.HasSuffix(word, "m") {
				words = append(words, word)
			}
		}
		out.WriteString(strings.Join(words, " ") + "\n")
	}
	return out.String()
}
