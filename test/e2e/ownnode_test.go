package e2e

import (
	"fmt"
	"testing"

	"github.com/twill-net/twill/lab"
)

const ownNodePort = 5978

// TestEgressToOwnNode: an isolated pod reaches its own node by no way, or by each
// way where the cluster is configured so; other nodes are never excepted.
func TestEgressToOwnNode(t *testing.T) {
	c := newCluster(t, []pod{
		{"default/isolated", "node01", map[string]string{"app": "isolated"}, nil},
		{"default/web", "node01", map[string]string{"app": "web"}, []lab.Port{{Port: 80}}},
	}, ownNodePort)
	// A Service of the host's network, as that of a name server on each node.
	c.addService(t, "default/host", fmt.Sprintf("  ports: [{port: 80, targetPort: %d}]\n", ownNodePort))
	for _, v := range []string{"4", "6"} {
		c.apply(t, fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: host-%s, labels: {kubernetes.io/service-name: host}}
addressType: IPv%s
ports: [{port: %d, protocol: TCP}]
endpoints: [{addresses: ["${node/node01@%s}"], conditions: {ready: true}}]
`, v, v, ownNodePort, v))
	}
	c.apply(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolated}
spec: {podSelector: {matchLabels: {app: isolated}}, policyTypes: [Egress]}
`)
	configure := func(way string) {
		t.Helper()
		c.twill(t, fmt.Sprintf(`{apiVersion: twill.io/v1, kind: FabricConfiguration, metadata: {name: default}, spec: {egressToOwnNode: %s}}`, way), "apply", "--wait", "-f", "-")
	}
	const toOwn = "isolated -> node/node01:5978 node/node01:5978/udp svc/default/host:80"
	const toOthers = "isolated -> node/node02:5978 node/node02:5978/udp web:80 outside:5978"
	for _, way := range []string{"", "Allow", "Enforce"} {
		if way != "" {
			configure(way)
		}
		if way == "Allow" {
			c.expect(t, toOwn, toOthers)
		} else {
			c.expect(t, "web -> node/node01:5978 svc/default/host:80", toOwn+"\n"+toOthers)
		}
		c.listable(t)
		for _, to := range []string{"node/node01:5978", "node/node02:5978", "svc/host:80"} {
			c.twill(t, "", "trace", "--probe", "isolated", to) // fails if the probe does not agree
		}
	}
}
