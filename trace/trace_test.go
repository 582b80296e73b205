package trace

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/policy"
)

// cluster is the classic exercise: three nodes, nginx twice, and a policy that
// lets in only pods with run=access.
const cluster = `
apiVersion: v1
kind: Namespace
metadata: {name: policy-demo}
---
apiVersion: v1
kind: Node
metadata:
  name: master
  annotations:
    twill.io/receives: '{"vxlan":{"mac":"02:00:00:00:00:10","vni":1,"port":8472},"host-gw":{}}'
    twill.io/underlay: '{"link":"eth0","prefixes":["172.16.10.10/24"],"mtu":1500}'
status: {addresses: [{type: InternalIP, address: 172.16.10.10}]}
---
apiVersion: v1
kind: Node
metadata:
  name: node01
  annotations:
    twill.io/receives: '{"vxlan":{"mac":"02:00:00:00:00:11","vni":1,"port":8472},"host-gw":{}}'
    twill.io/underlay: '{"link":"eth0","prefixes":["172.16.10.11/24"],"mtu":1500}'
status: {addresses: [{type: InternalIP, address: 172.16.10.11}]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: nginx-1, namespace: policy-demo, labels: {app: nginx}}
spec: {node: master, ipNetworks: [10.244.0.1/32]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: nginx-2, namespace: policy-demo, labels: {app: nginx}}
spec: {node: node01, ipNetworks: [10.244.1.1/32]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: access, namespace: policy-demo, labels: {run: access}}
spec: {node: node01, ipNetworks: [10.244.1.2/32]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: other, namespace: policy-demo, labels: {run: other}}
spec: {node: node01, ipNetworks: [10.244.1.3/32]}
---
apiVersion: v1
kind: Service
metadata: {name: nginx, namespace: policy-demo}
spec: {type: NodePort, clusterIP: 10.1.0.5, clusterIPs: [10.1.0.5], ports: [{port: 80, protocol: TCP, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: policy-demo}
spec: {clusterIP: 10.1.0.6, clusterIPs: [10.1.0.6], ports: [{port: 80, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: nginx-a, namespace: policy-demo, labels: {kubernetes.io/service-name: nginx}}
addressType: IPv4
ports: [{port: 80, protocol: TCP}]
endpoints:
- {addresses: [10.244.0.1], nodeName: master, conditions: {ready: true}}
- {addresses: [10.244.1.1], nodeName: node01, conditions: {ready: true}}
`

const accessNginx = `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: access-nginx, namespace: policy-demo}
spec:
  podSelector: {matchLabels: {app: nginx}}
  ingress:
  - from: [{podSelector: {matchLabels: {run: access}}}]
`

// elsewhere has node ports that not every node leads anywhere: those of near
// have an endpoint on node01 alone, those of void have none.
const elsewhere = `
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: policy-demo}
spec: {type: NodePort, externalTrafficPolicy: Local, clusterIP: 10.1.0.7, clusterIPs: [10.1.0.7], ports: [{port: 80, protocol: TCP, nodePort: 30081}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: near-a, namespace: policy-demo, labels: {kubernetes.io/service-name: near}}
addressType: IPv4
ports: [{port: 80, protocol: TCP}]
endpoints:
- {addresses: [10.244.1.1], nodeName: node01, conditions: {ready: true}}
---
apiVersion: v1
kind: Service
metadata: {name: void, namespace: policy-demo}
spec: {type: NodePort, clusterIP: 10.1.0.8, clusterIPs: [10.1.0.8], ports: [{port: 80, protocol: TCP, nodePort: 30082}]}
---
apiVersion: v1
kind: Service
metadata: {name: fenced, namespace: policy-demo}
spec: {type: LoadBalancer, loadBalancerSourceRanges: [172.16.10.200/32], clusterIP: 10.1.0.9, clusterIPs: [10.1.0.9], ports: [{port: 80, protocol: TCP}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.50}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: other-stays, namespace: policy-demo}
spec:
  podSelector: {matchLabels: {run: other}}
  policyTypes: [Egress]
`

func snapshot(t *testing.T, manifests string) *Snapshot {
	t.Helper()
	var objects []api.Object
	for _, doc := range bytes.Split([]byte(manifests), []byte("\n---\n")) {
		var meta struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			t.Fatal(err)
		}
		obj := api.LookupGVK(meta.APIVersion, meta.Kind).New()
		if err := yaml.UnmarshalStrict(doc, obj); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, obj)
	}
	s, err := New(objects)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTrace(t *testing.T) {
	open, guarded, near := snapshot(t, cluster), snapshot(t, cluster+accessNginx), snapshot(t, cluster+elsewhere)
	for _, c := range []struct {
		name     string
		in       *Snapshot
		from, to string
		port     uint16
		verdict  Verdict
		contains []string // in the sentence or in a way
	}{
		{"no policy", open, "other", "nginx", 80, Allowed, []string{"no policy selects the pod for ingress"}},
		{"the policy lets in", guarded, "access", "nginx", 80, Allowed, []string{"policy-demo/access-nginx ingress rule 1", "run=access"}},
		{"the policy keeps out", guarded, "other", "nginx", 80, Denied, []string{"policy-demo/access-nginx selects the pod and no rule allows this peer"}},
		{"another namespace's words", guarded, "policy-demo/other", "svc/nginx.policy-demo.svc.cluster.local", 80, Denied, nil},
		{"pod by name and by address", guarded, "access", "pod/nginx-1", 80, Allowed, []string{"node node01 → node master by vxlan, device twill-vxlan to 172.16.10.10"}},
		{"by address", guarded, "10.244.1.2", "10.244.0.1", 80, Allowed, nil},
		{"same node", guarded, "access", "nginx-2", 80, Allowed, []string{"stays on node node01"}},
		{"own node's probe", guarded, "node/master", "nginx-1", 80, Allowed, []string{"own node"}},
		{"another node's probe", guarded, "node/node01", "nginx-1", 80, Denied, nil},
		{"no endpoints", guarded, "access", "empty", 80, Rejected, []string{"has no endpoints"}},
		{"no such port", guarded, "access", "nginx", 81, Rejected, []string{"no port tcp/81"}},
		{"node port from outside", open, "172.16.10.200", "node/master", 30080, Allowed, nil},
		{"node port from outside, guarded", guarded, "172.16.10.200", "node/master", 30080, Denied, nil},
		{"local node port of the pod's own node", near, "access", "node/node01", 30081, Allowed, nil},
		{"local node port of a node without endpoint", near, "access", "node/master", 30081, Dropped, nil},
		{"nobody's node port of another node", near, "access", "node/master", 30082, Rejected, nil},
		{"nobody's node port, which policy forbids", near, "other", "node/master", 30082, Denied, nil},
		{"nobody's node port of the own node, before policy", near, "other", "node/node01", 30082, Rejected, nil},
		{"a load balancer without endpoints", near, "172.16.10.200", "192.0.2.50", 80, Rejected, nil},
		{"a load balancer, outside its source ranges", near, "172.16.10.201", "192.0.2.50", 80, Dropped, []string{"loadBalancerSourceRanges of service policy-demo/fenced do not contain 172.16.10.201"}},
		{"a node's own pod, but by another node's port", guarded, "node/node01", "node/master", 30080, Denied, nil},
		{"out of the cluster", guarded, "access", "192.0.2.1", 443, Allowed, []string{"own routes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := c.in.Trace(Query{Namespace: "policy-demo", From: c.from, To: c.to, Protocol: 6, Port: c.port})
			if err != nil {
				t.Fatal(err)
			}
			if r.Verdict != c.verdict {
				t.Errorf("verdict %s (%s), want %s", r.Verdict, r.Sentence, c.verdict)
			}
			text := r.Sentence
			for _, w := range r.Ways {
				text += "\n" + w.Route + "\n" + w.Reason
			}
			for _, want := range c.contains {
				if !strings.Contains(text, want) {
					t.Errorf("does not say %q:\n%s", want, text)
				}
			}
		})
	}
}

const ported = `
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: ported, namespace: policy-demo, labels: {app: ported}}
spec:
  node: node01
  ipNetworks: [10.244.1.9/32]
  ports:
  - {name: dns, protocol: UDP, port: 53}
  - {name: web, protocol: TCP, port: 80, hostPort: 8080}
  - {name: web, protocol: UDP, port: 81, hostPort: 8080}
  - {protocol: TCP, port: 90, hostPort: 9090, hostIP: 172.16.10.77}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ported, namespace: policy-demo}
spec:
  podSelector: {matchLabels: {app: ported}}
  ingress:
  - {from: [{ipBlock: {cidr: 172.16.10.200/32}}]}
  - {from: [{podSelector: {matchLabels: {run: access}}}], ports: [{port: web}]}
`

// TestHostPorts: a node leads them to its pod, whose policy sees the client's own
// address.
func TestHostPorts(t *testing.T) {
	s := snapshot(t, cluster+ported)
	for _, c := range []struct {
		from, to string
		proto    uint8
		port     uint16
		want     Verdict
		way      string
	}{
		{"172.16.10.200", "node/node01", policy.TCP, 8080, Allowed, "10.244.1.9:80"},
		{"172.16.10.201", "node/node01", policy.TCP, 8080, Denied, "10.244.1.9:80"},
		{"172.16.10.200", "node/node01", policy.UDP, 8080, Allowed, "10.244.1.9:81"},
		{"access", "node/node01", policy.TCP, 8080, Allowed, "10.244.1.9:80"},
		{"other", "node/node01", policy.TCP, 8080, Denied, "10.244.1.9:80"},
		{"nginx-1", "172.16.10.11", policy.TCP, 8080, Denied, "10.244.1.9:80"},
		{"node/node01", "node/node01", policy.TCP, 8080, Allowed, "10.244.1.9:80"},
		{"other", "172.16.10.77", policy.TCP, 9090, Denied, "10.244.1.9:90"},
		{"other", "node/node01", policy.TCP, 9090, Allowed, "172.16.10.11:9090"}, // only at its host IP
		{"other", "node/master", policy.TCP, 8080, Allowed, "172.16.10.10:8080"}, // only on the pod's node
	} {
		r, err := s.Trace(Query{Namespace: "policy-demo", From: c.from, To: c.to, Protocol: c.proto, Port: c.port})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Ways) != 1 || r.Verdict != c.want || r.Ways[0].To.String() != c.way {
			t.Errorf("%s to %s:%d/%d is %s (%s), %+v; want %s at %s", c.from, c.to, c.port, c.proto, r.Verdict, r.Sentence, r.Ways, c.want, c.way)
		}
	}
}

func TestNamedPorts(t *testing.T) {
	s := snapshot(t, cluster+ported)
	for _, c := range []struct {
		to, name string
		proto    uint8
		want     string // "port/protocol", or the error
	}{
		{"pod/ported", "web", 0, "80/tcp"},
		{"pod/ported", "web", policy.UDP, "81/udp"},
		{"pod/ported", "dns", 0, "53/udp"},
		{"10.244.1.9", "web", policy.TCP, "80/tcp"},
		{"pod/ported", "dns", policy.TCP, `pod policy-demo/ported has no port named "dns"; it has dns/udp, web/tcp, web/udp`},
		{"pod/nginx-1", "web", 0, `pod policy-demo/nginx-1 has no named ports: give the number instead of "web"`},
		{"node/node01", "web", 0, `node node01 has no port names: give the number instead of "web"`},
		{"svc/nginx", "http", 0, `service policy-demo/nginx has no named ports: give the number instead of "http"`},
	} {
		r, err := s.Trace(Query{Namespace: "policy-demo", From: "access", To: c.to, Protocol: c.proto, PortName: c.name})
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprintf("%d/%s", r.Port, r.Protocol)
		}
		if got != c.want {
			t.Errorf("%s:%s is %q, want %q", c.to, c.name, got, c.want)
		}
	}
}

// TestNodePortSource: a node port's client is seen under the address of the node
// that translated, unless the endpoint is on that node, where policy comes
// before the masquerade.
func TestNodePortSource(t *testing.T) {
	r, err := snapshot(t, cluster).Trace(Query{Namespace: "policy-demo", From: "172.16.10.200", To: "node/master", Protocol: 6, Port: 30080})
	if err != nil {
		t.Fatal(err)
	}
	if r.Service == nil || r.Service.KeepsSource || len(r.Ways) != 2 {
		t.Fatalf("%+v", r)
	}
	for _, w := range r.Ways {
		if w.Seen.String() != "172.16.10.10" {
			t.Errorf("the endpoint on %s sees %s", w.Node, w.Seen)
		}
	}
}

// TestUnattachedPod: an address of a node's block that no known pod has is a pod of that
// node to Services, and nobody to policy.
func TestUnattachedPod(t *testing.T) {
	const block = `
---
apiVersion: projectcalico.org/v3
kind: IPAMBlock
metadata: {name: 10-244-1-0-26}
spec: {cidr: 10.244.1.0/26, affinity: "host:node01"}
`
	r, err := snapshot(t, cluster+block).Trace(Query{Namespace: "policy-demo", From: "10.244.1.50", To: "nginx", Protocol: 6, Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict != Allowed || r.Service == nil || r.Service.Node != "node01" || !r.Service.KeepsSource {
		t.Errorf("without policy: %s, %+v", r.Sentence, r.Service)
	}
	r, err = snapshot(t, cluster+block+accessNginx).Trace(Query{Namespace: "policy-demo", From: "10.244.1.50", To: "nginx-2", Protocol: 6, Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict != Denied {
		t.Errorf("with policy: %s", r.Sentence)
	}
}

func TestUnknownNamesAreErrors(t *testing.T) {
	s := snapshot(t, cluster)
	for _, q := range []Query{
		{Namespace: "policy-demo", From: "nobody", To: "nginx"},
		{Namespace: "policy-demo", From: "access", To: "nobody"},
		{Namespace: "policy-demo", From: "node/nowhere", To: "nginx"},
		{Namespace: "policy-demo", From: "access", To: "fd00::1"},
	} {
		q.Protocol, q.Port = 6, 80
		if r, err := s.Trace(q); err == nil {
			t.Errorf("%+v: no error but %s", q, r.Sentence)
		}
	}
}
