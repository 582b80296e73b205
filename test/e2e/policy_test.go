package e2e

import (
	"fmt"
	"testing"

	"github.com/twill-net/twill/lab"
)

// The pods of the policy tests. The server is on the same node as neighbour and
// insider; elsewhere/far is on another one.
var policyPods = []pod{
	{"default/db", "node01", map[string]string{"role": "db", "app": "db"}, []lab.Port{{Name: "redis", Port: 6379}, {Name: "http", Port: 8080}, {Port: 5978}}},
	{"default/frontend", "node02", map[string]string{"role": "frontend"}, []lab.Port{{Name: "http", Port: 80}}},
	{"default/neighbour", "node01", map[string]string{"tier": "back"}, []lab.Port{{Name: "http", Port: 80}}},
	{"myproject/client", "node02", nil, []lab.Port{{Port: 80}}},
	{"elsewhere/frontend", "master", map[string]string{"role": "frontend"}, []lab.Port{{Port: 80}}},
	{"elsewhere/insider", "node01", nil, []lab.Port{{Port: 80}}},
	{"elsewhere/far", "node02", nil, []lab.Port{{Port: 80}, {Port: 31999}, {Port: 32000}, {Port: 32500}, {Port: 32768}, {Port: 32769}}},
}

// all is everybody but db.
const all = "frontend neighbour myproject/client elsewhere/frontend elsewhere/insider elsewhere/far node/master node/node01 node/node02"

func newPolicyCluster(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t, policyPods, 80, 5978, 5979)
	c.twill(t, "", "label", "ns", "myproject", "project=myproject")
	c.addService(t, "default/db", `  selector: {app: db}
  ports:
  - {name: redis, port: 6379}
  - {name: redis-udp, port: 6379, protocol: UDP}
  - {name: http, port: 8080, targetPort: http}
`)
	local := c.addService(t, "default/local", `  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: db}
  ports: [{port: 6379}]
`)
	anywhere := c.addService(t, "default/anywhere", `  type: NodePort
  selector: {app: db}
  ports: [{port: 6379}]
`)
	c.ports["local"] = uint16(local.Spec.Ports[0].NodePort)
	c.ports["anywhere"] = uint16(anywhere.Spec.Ports[0].NodePort)
	return c
}

// scenario is a set of policies, and what packets then meet with. Names without
// a namespace are in namespace default.
type scenario struct {
	name       string
	policies   string
	pass, deny string
}

const (
	denyIngress = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny-ingress}
spec:
  podSelector: {}
  policyTypes: [Ingress]
---`
	denyEgress = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny-egress}
spec:
  podSelector: {}
  policyTypes: [Egress]
---`
)

// toDB is an ingress policy for db with the given rules.
func toDB(rules string) string {
	return fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-db}
spec:
  podSelector: {matchLabels: {role: db}}
  ingress:
%s
---`, rules)
}

// TestPolicy goes through the examples of the Kubernetes documentation, what the
// documentation says in words, and changes at run time.
func TestPolicy(t *testing.T) {
	c := newPolicyCluster(t)
	everything := all + " -> db:6379 db:6379/udp db:8080\n" + `
		db frontend -> outside:5978 outside:5978/udp node/node01:5978 node/master:5978 elsewhere/far:32000
		outside -> node/node01:local node/node01:anywhere node/node02:anywhere`
	c.expect(t, everything, "")
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			defer c.removePolicies(t)
			c.apply(t, s.policies)
			c.expect(t, s.pass, s.deny)
			c.listable(t)
		})
	}
	for _, change := range changes {
		t.Run(change.name, func(t *testing.T) {
			defer c.removePolicies(t)
			change.test(t, c)
			c.listable(t)
		})
	}
	t.Run("without policies again", func(t *testing.T) { c.expect(t, everything, "") })
}
