package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/load"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/test/testlab"
)

// mendedWithin is how soon what somebody else changed must be right again. A
// busy machine may miss it once, not driftTries times.
const (
	mendedWithin = time.Second
	driftTries   = 3
)

// loadRate is how many datagrams a second go from pod to pod meanwhile.
const loadRate = 200

// Changes by hand to what is ours on a node, as scripts; the words are those of
// apply, and some that newDriftCluster finds.
var (
	// No packet of a flow that has begun may be lost for these.
	harmless = []string{
		"nft delete rule inet twill forward handle ${rule}",
		"nft flush chain inet twill forward",
		"nft delete element inet twill to-pod { ${veth} }",
		"nft delete element inet twill from-pod { ${veth} }",
		"nft flush map inet twill svc4",
		"nft flush set inet twill nodes6",
		"nft add element inet twill cluster-ips4 { 192.0.2.1 }",
		"nft add chain inet twill foreign",
		"nft delete table inet twill",
		"nft flush ruleset",
		"ip route del blackhole ${a/client block@4}",
		"ip -6 route del ${a/server block@6}",
		"ip link set twill-vxlan mtu 1400",
		"ip route add 192.0.2.0/24 via ${node/node01@4} proto 84",
		"echo 0 > /proc/sys/net/ipv4/conf/${veth}/proxy_arp",
	}
	// These interrupt, for as long as they last.
	harmful = []string{
		"nft insert rule inet twill input drop", // what comes by the tunnel is input, too
		"nft insert rule inet twill forward drop",
		"ip route del ${a/server block@4}",
		"ip route del ${a/client@4}",
		"ip route replace ${a/server block@4} via ${node/node02@4} dev eth0 proto 84",
		"ip neigh del ${node/node01@4} dev twill-vxlan",
		"ip neigh replace ${node/node01@4} lladdr 02:00:00:00:00:01 dev twill-vxlan nud permanent",
		"ip neigh del ${a/client@4} dev ${veth}",
		"bridge fdb del ${mac} dev twill-vxlan dst ${node/node01@4}",
		"ip link set twill-vxlan down",
		"ip link del twill-vxlan",
		"ip link set ${veth} down",
		"ip link del ${veth}",
		"echo 0 > /proc/sys/net/ipv4/ip_forward",
	}
)

// TestDriftIsMended changes each sort of object on a node by hand.
func TestDriftIsMended(t *testing.T) {
	c := newDriftCluster(t)
	for name, scripts := range map[string][]string{"harmless": harmless, "harmful": harmful} {
		t.Run(name, func(t *testing.T) {
			stop := c.startLoad(t)
			missing := time.Duration(0)
			for _, script := range scripts {
				t.Run(script, func(t *testing.T) { missing += c.drift(t, script) })
			}
			result := stop()
			t.Log(result)
			most := 0
			if name == "harmful" {
				most = int(1.5 * loadRate * missing.Seconds())
			}
			if result.Lost > most || result.Answered == 0 {
				t.Errorf("%d datagrams lost, want at most %d", result.Lost, most)
			}
		})
	}
	c.listable(t)
	c.expect(t, "a/client -> a/server:80\nnode/node01 -> a/server:80", "a/other -> a/client:80 a/server:80")
}

// needPrograms skips a test that can't look at a node by hand.
func needPrograms(t *testing.T) {
	t.Helper()
	for _, program := range []string{"nft", "ip", "bridge"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs the program %s, to look at nodes and change things by hand: %v", program, err)
		}
	}
}

// driftCluster is a cluster with something of each sort on the node master.
type driftCluster struct {
	*cluster
	veth, mac string // of the client, and of node01's tunnel
}

func newDriftCluster(t *testing.T) *driftCluster {
	t.Helper()
	needPrograms(t)
	port := []lab.Port{{Port: 80}}
	c := &driftCluster{cluster: newCluster(t, []pod{
		{"a/client", "master", map[string]string{"app": "client"}, port},
		{"a/server", "node01", map[string]string{"app": "server"}, port},
		{"a/other", "node02", nil, port},
	})}
	c.addService(t, "a/server", "  selector: {app: server}\n  ports: [{port: 80}]\n")
	c.apply(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client-to-server, namespace: a}
spec:
  podSelector: {matchExpressions: [{key: app, operator: Exists}]}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]
`)
	c.veth = c.find(t, `dev (\S+)`, "ip route show "+c.addresses["a/client"][0].String())
	c.mac = c.find(t, `lladdr (\S+)`, "ip neigh show "+c.addresses["node/node01"][0].String()+" dev twill-vxlan")
	c.expect(t, "a/client -> a/server:80", "a/other -> a/client:80 a/server:80")
	return c
}

// find executes a script on the node and returns what the expression finds.
func (c *driftCluster) find(t *testing.T, expression, script string) string {
	t.Helper()
	out, err := c.run("node/master", "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(expression).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("%s: no %s in %q", script, expression, out)
	}
	return found[1]
}

// startLoad sends datagrams until stop is called.
func (c *driftCluster) startLoad(t *testing.T) (stop func() load.Result) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	target := load.Target{Kind: load.UDP, Address: netip.AddrPortFrom(c.addresses["a/server"][0], 80).String()}
	var results []load.Result
	done := make(chan error, 1)
	go func() {
		done <- space.In(c.tasks["a/client"], func() (err error) {
			results, err = load.Run(ctx, []load.Target{target}, loadRate, load.Patience)
			return err
		})
	}()
	return func() load.Result {
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return results[0]
	}
}

// drift executes a script on the node and waits until the node is as it was. It
// returns how long it was not, all tries together.
func (c *driftCluster) drift(t *testing.T, script string) (missing time.Duration) {
	t.Helper()
	before := c.state(t, "master")
	for range driftTries {
		words := strings.NewReplacer("${veth}", c.veth, "${mac}", c.mac)
		if strings.Contains(script, "${rule}") {
			words = strings.NewReplacer("${rule}", c.find(t, `@from-pod.* handle (\d+)`, "nft -a list chain inet twill forward"))
		}
		if _, err := c.run("node/master", "sh", "-c", c.fill(t, words.Replace(script))); err != nil {
			t.Fatal(err)
		}
		took := testlab.Eventually(t, patience, func() error {
			if diff := cmp.Diff(before, c.state(t, "master")); diff != "" {
				return fmt.Errorf("not mended:\n%s", diff)
			}
			return nil
		})
		missing += took
		if took <= mendedWithin {
			t.Logf("mended after %d ms", took.Milliseconds())
			return missing
		}
	}
	t.Errorf("not mended within %s in %d tries", mendedWithin, driftTries)
	return missing
}

// state is what a node has of ours.
func (c *cluster) state(t *testing.T, node string) []string {
	t.Helper()
	state, err := c.State(t.Context(), node)
	switch {
	case err != nil && strings.Contains(err.Error(), "twill-vxlan"):
		return []string{err.Error()} // the device is not there
	case err != nil:
		t.Fatal(err)
	}
	return state
}
