package e2e

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/load"
	"github.com/twill-net/twill/test/testlab"
)

const (
	// requestRate is of each of new connections and datagrams, lastingRate of each of
	// the connections that last: 1,000 requests a second together.
	requestRate, lastingRate, lastingConnections = 334, 20, 16
	loadPatience                                 = 20 * time.Second
)

// loadServers answer on two nodes; the policy lets in the client's label only.
const loadServers = `apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {run: client}}}]}]
`

// TestKubernetesUnderLoad does to a real cluster what happens to clusters, while a
// pod on one node sends requests to a Service whose endpoints are on the others:
// none may be lost.
func TestKubernetesUnderLoad(t *testing.T) {
	k := newKubernetes(t)
	for _, node := range []string{"node01", "node02"} {
		k.must(k.pod("server-"+node, node, "server", "web"), "apply", "-f", "-")
	}
	k.must(k.pod("client", "master", "client", "sleep", "1000000"), "apply", "-f", "-")
	k.must(loadServers, "apply", "-f", "-")
	k.must("", "wait", "pod", "--all", "--for=condition=Ready", "--timeout", kubernetesPatience.String())
	service := k.must("", "get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	client := k.namespaceOf("master", "client")
	testlab.Eventually(t, kubernetesPatience, func() error {
		_, err := k.At(t.Context(), lab.Node("master"), "nsenter", "--net="+client, "wget", "-q", "-O", "-", service)
		return err
	})

	t.Run("rolling update", func(t *testing.T) {
		took := k.underLoad(t, client, service, func() {
			k.must("", "rollout", "restart", "-n", "kube-system", "daemonset/twill-agent")
			k.must("", "rollout", "status", "-n", "kube-system", "daemonset/twill-agent", "--timeout", kubernetesPatience.String())
		})
		t.Logf("every agent was replaced within %s", took)
	})

	t.Run("API server away", func(t *testing.T) {
		k.must(k.pod("restarted", "node01", "client", "sleep", "1000000"), "apply", "-f", "-")
		k.must("", "wait", "pod", "restarted", "--for=condition=Ready", "--timeout", kubernetesPatience.String())
		before := k.namespaceOf("node01", "restarted")
		k.underLoad(t, client, service, func() {
			if err := k.Control(lab.ControlRequest{Process: lab.APIServer, Action: lab.Kill}); err != nil {
				t.Fatal(err)
			}
			ended := time.After(*outage)
			// Its kubelet makes it a new sandbox, with a network of its own, whose address
			// is the one by which the policies of other nodes know the pod.
			if _, err := k.At(t.Context(), lab.Node("node01"), "sh", "-c", `kill -9 $(ip netns pids "$(basename "$0")")`, before); err != nil {
				t.Fatal(err)
			}
			took := testlab.Eventually(t, kubernetesPatience, func() error {
				now, err := k.networkOf("node01", "restarted")
				if err == nil && now == before {
					err = errors.New("its network is still the old one")
				}
				for range 4 { // both endpoints, most likely
					if err == nil {
						_, err = k.At(t.Context(), lab.Node("node01"), "nsenter", "--net="+now, "timeout", "2", "wget", "-q", "-O", "-", service)
					}
				}
				return err
			})
			t.Logf("a pod that was killed was back after %s, without the API server", took.Round(time.Millisecond))
			<-ended
			if err := k.Control(lab.ControlRequest{Process: lab.APIServer, Action: lab.Start}); err != nil {
				t.Fatal(err)
			}
			k.must("", "wait", "pod", "--all", "--for=condition=Ready", "--timeout", kubernetesPatience.String())
		})
	})
}

// underLoad calls f while a pod on the master sends requests to a service: 1,000 a
// second, as new connections, datagrams and connections that last.
func (k *kubernetes) underLoad(t *testing.T, client, service string, f func()) time.Duration {
	t.Helper()
	enter := []string{"nsenter", "--net=" + client}
	lasting := slices.Repeat([]string{load.Stream + "://" + service}, lastingConnections)
	stops := []func() []load.Result{
		k.LoadBy(t, lab.Node("master"), enter, requestRate, loadPatience, load.HTTP+"://"+service, load.UDP+"://"+service),
		k.LoadBy(t, lab.Node("master"), enter, lastingRate, loadPatience, lasting...),
	}
	began := time.Now()
	f()
	took := time.Since(began)
	sent, lost := 0, 0
	for i, stop := range stops {
		for _, r := range stop() {
			sent, lost = sent+r.Sent, lost+r.Lost
			if i == 0 || r.Lost > 0 {
				t.Log(r)
			}
		}
	}
	t.Logf("%d requests in %s, %d lost", sent, took.Round(time.Second), lost)
	if lost > 0 || sent == 0 {
		t.Errorf("%d of %d requests were lost, want none", lost, sent)
	}
	return took.Round(time.Second)
}
