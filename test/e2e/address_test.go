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

// TestNodeAddressStays while its device has it: neither a virtual address nor a VPN
// with the default route becomes the node's address.
func TestNodeAddressStays(t *testing.T) {
	needPrograms(t)
	web := []lab.Port{{Port: 80}}
	c := newCluster(t, []pod{{name: "default/here", node: "node01", ports: web}, {name: "default/there", node: "node02", ports: web}})
	own := c.Config.NodeAddresses(1)
	block := netip.PrefixFrom(c.addresses["default/there"][0], 32-blockHostBits).Masked()
	for name, script := range map[string]string{
		"virtual address": `ip addr add 172.16.10.50/32 dev eth0; ip addr del $0/24 dev eth0; ip addr add $0/24 dev eth0
			ip route replace default via 172.16.10.1`,
		"VPN": `ip route replace default via 172.16.10.1 dev eth0 metric 100; ip route del default metric 0
			ip link add tun0 type veth peer name tp; ip link set tp up; ip link set tun0 up; ip addr add 10.8.0.2/24 dev tun0
			ip route add default via 10.8.0.1 dev tun0 metric 50`,
	} {
		t.Run(name, func(t *testing.T) {
			// That a route of ours is mended shows that the agent has seen the change.
			out, err := c.At(t.Context(), lab.Node("node01"), "sh", "-c", script+"\nip route del $1 || true", own[0].String(), block.String())
			if err != nil {
				t.Fatalf("%s%v", out, err)
			}
			testlab.Eventually(t, patience, func() error {
				out, err := c.At(t.Context(), lab.Node("node01"), "ip", "route", "show", block.String())
				if err == nil && !strings.Contains(out, "twill-vxlan") {
					err = fmt.Errorf("the route to %s is not mended", block)
				}
				return err
			})
			for _, want := range own {
				if out := c.twill(t, "", "get", "nodes", "-o", "wide"); !strings.Contains(out, want.String()) {
					t.Errorf("node01 has another address than %s:\n%s", want, out)
				}
			}
			testlab.Eventually(t, patience, func() error { return c.open("default/there", "default/here") })
			c.wrong(t, patience, "nothing is wrong")
		})
	}
	// Nor does an agent that starts now take the VPN's.
	if err := c.Control(lab.ControlRequest{Process: "agent", Node: "node01", Action: lab.Kill}); err != nil {
		t.Fatal(err)
	}
	if err := c.Control(lab.ControlRequest{Process: "agent", Node: "node01", Action: lab.Start}); err != nil {
		t.Fatal(err)
	}
	if out := c.twill(t, "", "get", "nodes", "-o", "wide"); !strings.Contains(out, own[0].String()) || strings.Contains(out, "10.8.0.2") {
		t.Errorf("after a restart node01 has another address:\n%s", out)
	}
}

// TestMTUFollows changes the MTU of a node's device while its agent runs: the tunnel
// and new pods get what is left of it, pods that run keep theirs.
func TestMTUFollows(t *testing.T) {
	needPrograms(t)
	web := []lab.Port{{Port: 80}}
	c := newCluster(t, []pod{{name: "default/old", node: "node01", ports: web}, {name: "default/there", node: "node02", ports: web}})
	mtu := func(place lab.Place, link string) string {
		t.Helper()
		out, err := c.At(t.Context(), place, "cat", "/sys/class/net/"+link+"/mtu")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	for _, step := range []struct{ device, tunnel string }{{"1400", "1350"}, {"9000", "8950"}, {"1500", "1450"}} {
		if out, err := c.At(t.Context(), lab.Node("node01"), "ip", "link", "set", "eth0", "mtu", step.device); err != nil {
			t.Fatalf("%s%v", out, err)
		}
		took := testlab.Eventually(t, patience, func() error {
			if got := mtu(lab.Node("node01"), "twill-vxlan"); got != step.tunnel {
				return fmt.Errorf("the tunnel has an MTU of %s on a device with %s, want %s", got, step.device, step.tunnel)
			}
			return nil
		})
		t.Logf("the tunnel followed to %s after %s", step.tunnel, took.Round(time.Millisecond))
		testlab.Eventually(t, patience, func() error {
			if out := c.twill(t, "", "get", "node", "node01", "-o", "yaml"); !strings.Contains(out, `"mtu":`+step.device) {
				return fmt.Errorf("the node does not say that its MTU is %s: %s", step.device, out)
			}
			return nil
		})
		name := "new-" + step.device
		c.addPod(t, pod{name: "default/" + name, node: "node01", ports: web})
		if got := mtu(lab.Pod("default", name), "eth0"); got != step.tunnel {
			t.Errorf("a new pod has an MTU of %s, want %s", got, step.tunnel)
		}
		if got := mtu(lab.Pod("default", "old"), "eth0"); got != "1450" {
			t.Errorf("a pod that runs has an MTU of %s, want 1450", got)
		}
		if err := c.open("default/there", "default/"+name); err != nil {
			t.Error(err)
		}
		if err := c.open("default/there", "default/old"); err != nil {
			t.Error(err)
		}
	}
}
