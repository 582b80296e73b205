package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/load"
	"github.com/twill-net/twill/test/testlab"
)

// moving are servers that, when they are told to end, go on until the test has seen
// that they may.
const moving = `apiVersion: apps/v1
kind: Deployment
metadata: {name: server}
spec:
  replicas: 4
  selector: {matchLabels: {app: server}}
  template:
   metadata: {labels: {app: server}}
   spec:
    nodeSelector: {moving: here}
    topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: server}}}]
    automountServiceAccountToken: false
    terminationGracePeriodSeconds: 120
`

const untilMoved = `{preStop: {exec: {command: [sh, -c, "until [ -e /programs/moved ]; do sleep 0.1; done"]}}}`

// drainRate is of requests of each kind. It is low: what waits at an endpoint that
// ends is lost. drainPatience is more than an answer takes, and so long that of
// requests which go to endpoints that are no more, more are lost than may be.
const drainRate, drainPatience = 50, 3 * time.Second

// nodeRemains is what a node knows of another, by the other's address: routes,
// neighbours and forwarding entries, and whose tunnels it takes.
const nodeRemains = `ip route; ip neigh show nud permanent; bridge fdb show dev twill-vxlan; nft list set inet twill nodes4`

// TestKubernetesNodes is what happens to nodes of a real cluster.
func TestKubernetesNodes(t *testing.T) {
	k := newKubernetes(t)
	k.must("", "label", "node", "node01", "node02", "moving=here")
	k.must(moving+strings.ReplaceAll(k.container([]string{"web"}, untilMoved), "\n", "\n  "), "apply", "-f", "-")
	for _, name := range []string{"client", "stranger"} {
		k.must(k.pod(name, "master", name, "sleep", "1000000"), "apply", "-f", "-")
	}
	k.must(k.pod("guest", "node01", "client", "sleep", "1000000"), "apply", "-f", "-")
	k.must(loadServers, "apply", "-f", "-")
	k.podsReady()
	k.step("drain", (*kubernetes).nodeDrained)
	k.step("leave", (*kubernetes).nodeLeaves)
	k.step("join", (*kubernetes).nodeJoins)
	k.step("another address", (*kubernetes).nodeMoves)
	k.step("reboot", (*kubernetes).nodeReboots)
	k.step("blocks", (*kubernetes).blocksAreGivenBack)
	k.step("refused service", (*kubernetes).serviceIsRefused)
	k.step("permissions", (*kubernetes).permissions) // of all that was done before
	if status, err := k.twill("status"); err != nil || !strings.Contains(status, "nothing is wrong") {
		t.Errorf("%s%v", status, err)
	}
}

const refusedService = `apiVersion: v1
kind: Service
metadata: {name: refused}
spec: {ports: [{port: 80}], externalIPs: [203.0.113.7]}
`

// serviceIsRefused: the owner of a Service finds with kubectl what nodes do not program
// of it, in one Event and a condition that goes with its cause.
func (k *kubernetes) serviceIsRefused() {
	k.must(refusedService, "apply", "-f", "-")
	k.must("", "wait", "service/refused", "--for=condition=twill.io/Programmed=False", "--timeout", kubernetesPatience.String())
	testlab.Eventually(k.T, kubernetesPatience, func() error {
		out, err := k.kubectl("", "get", "events", "--field-selector=involvedObject.name=refused,reason=NotProgrammed,type=Warning", "-o", "jsonpath={.items[*].message}")
		if got := strings.Count(out, "externalIPs 203.0.113.7"); got != 1 {
			return fmt.Errorf("%d Events, want one: %q %v", got, out, err)
		}
		return err
	})
	k.must("", "patch", "service", "refused", "--type=merge", "-p", `{"spec":{"externalIPs":null}}`)
	testlab.Eventually(k.T, kubernetesPatience, func() error {
		out, err := k.kubectl("", "get", "service", "refused", "-o", "jsonpath={.status.conditions}")
		if out != "" {
			return fmt.Errorf("conditions %s %v", out, err)
		}
		return err
	})
	k.must("", "delete", "service", "refused")
}

const passingPool = `apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: passing}
spec: {cidr: "fd00:97::/112"}
`

// blocksAreGivenBack has a pool come and go, in which each node claims a block.
func (k *kubernetes) blocksAreGivenBack() {
	blocks := func(want int) func() error {
		return func() error {
			out, err := k.kubectl("", "get", "ipamblocks", "-o", "jsonpath={.items[*].spec.cidr}")
			if got := strings.Count(out, "fd00:97:"); got != want {
				return fmt.Errorf("%d blocks of the pool, want %d: %s%v", got, want, out, err)
			}
			return err
		}
	}
	k.must(passingPool, "apply", "-f", "-")
	testlab.Eventually(k.T, kubernetesPatience, blocks(3))
	k.must("", "delete", "ippool", "passing")
	testlab.Eventually(k.T, kubernetesPatience, blocks(0))
}

func (k *kubernetes) podsReady() {
	k.Helper()
	k.must("", "rollout", "status", "deployment/server", "--timeout", kubernetesPatience.String())
	k.must("", "wait", "pod", "--all", "--for=condition=Ready", "--timeout", kubernetesPatience.String())
}

func (k *kubernetes) service() string {
	k.Helper()
	return k.must("", "get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
}

// endpoints are the addresses of the service's pods.
func (k *kubernetes) endpoints(where string) []string {
	k.Helper()
	return strings.Fields(k.must("", "get", "pod", "-l", "app=server", "--field-selector", where, "-o", "jsonpath={.items[*].status.podIP}"))
}

// serves waits until a pod reaches the service and every endpoint of it, and says
// how long that took. A pod that the policy does not let in reaches none.
func (k *kubernetes) serves(node, client string) time.Duration {
	k.Helper()
	all := k.endpoints("")
	if len(all) != 4 {
		k.Errorf("the service has the endpoints %v", all)
	}
	took := testlab.Eventually(k.T, kubernetesPatience, func() error {
		return errors.Join(k.getAll(node, client, append(all, k.service()))...)
	})
	for i, err := range k.getAll("master", "stranger", all) {
		if err == nil {
			k.Errorf("a stranger reaches %s", all[i])
		}
	}
	return took
}

// getAll is why a pod gets nothing from each address.
func (k *kubernetes) getAll(node, pod string, addresses []string) []error {
	errs := make([]error, len(addresses))
	var wait sync.WaitGroup
	for i, address := range addresses {
		wait.Go(func() { _, errs[i] = k.get(node, pod, address) })
	}
	wait.Wait()
	return errs
}

// know says whether the others know a node by an address of its own.
func (k *kubernetes) know(node, address string) (known, unknown error) {
	for _, other := range k.Config.NodeNames() {
		if other == node {
			continue
		}
		out, err := k.At(k.Context(), lab.Node(other), "sh", "-c", nodeRemains)
		if err != nil {
			return err, err
		}
		// A route, its neighbour, its forwarding entry and an element; a node has two
		// blocks at times.
		if n := strings.Count(out, address); n < 4 {
			known = fmt.Errorf("%s knows %s of %s:\n%s", other, address, node, out)
		}
		if strings.Contains(out, address) {
			unknown = fmt.Errorf("%s still knows %s of %s:\n%s", other, address, node, out)
		}
	}
	return known, unknown
}

// nodeDrained moves endpoints off a node, of a service that gets requests. None is
// lost that is sent after the endpoints moved; and since these go on until all nodes
// have heard of it, none at all but for datagrams: to one that is under way when its
// flow is led elsewhere there comes an answer that nobody expects.
func (k *kubernetes) nodeDrained() {
	service := k.service()
	testlab.Eventually(k.T, kubernetesPatience, func() error { _, err := k.get("master", "client", service); return err })
	client := []string{"nsenter", "--net=" + k.namespaceOf("master", "client")}
	stop := k.LoadBy(k.T, lab.Node("master"), client, drainRate, loadPatience/2, load.HTTP+"://"+service, load.UDP+"://"+service)
	leaving := k.endpoints("spec.nodeName=node02")
	left := func() error {
		for _, node := range k.Config.NodeNames() {
			out, err := k.At(k.Context(), lab.Node(node), "nft", "list", "map", "inet", "twill", "ep4")
			if err != nil {
				return err
			}
			for _, address := range leaving {
				if strings.Contains(out, ": "+address+" . 80") {
					return fmt.Errorf("%s leads to %s:\n%s", node, address, out)
				}
			}
		}
		return nil
	}
	if left() == nil {
		k.Fatalf("the service does not lead to %v on node02", leaving)
	}
	began, drained := time.Now(), make(chan error, 1)
	go func() {
		_, err := k.kubectl("", "drain", "node02", "--ignore-daemonsets", "--timeout", kubernetesPatience.String())
		drained <- err
	}()
	testlab.Eventually(k.T, kubernetesPatience, left)
	k.Logf("no node led to the endpoints of node02 any more %s after the drain began", time.Since(began).Round(10*time.Millisecond))
	<-time.After(drainPatience) // requests are answered by then
	if err := os.WriteFile(filepath.Join(k.Config.Executables, "moved"), nil, 0o644); err != nil {
		k.Fatal(err)
	}
	if err := <-drained; err != nil {
		k.Fatal(err)
	}
	k.podsReady()
	k.serves("master", "client")
	<-time.After(drainPatience)
	for i, r := range stop() {
		k.Log(r)
		if may := []int{0, drainRate}[i]; r.Lost > may || r.Sent < 2*drainRate {
			k.Errorf("%d of %d requests to %s were lost, want at most %d", r.Lost, r.Sent, r.Target, may)
		}
	}
	k.Logf("%d of 4 endpoints moved in %s", len(leaving), time.Since(began).Round(100*time.Millisecond))
}

// nodeLeaves takes a node out of the cluster: the others forget it, and its blocks
// are free.
func (k *kubernetes) nodeLeaves() {
	if err := k.Control(lab.ControlRequest{Process: lab.Kubelet, Node: "node02", Action: lab.Stop}); err != nil {
		k.Fatal(err)
	}
	if known, _ := k.know("node02", "172.16.10.12"); known != nil {
		k.Fatal(known)
	}
	k.must("", "delete", "node", "node02")
	took := testlab.Eventually(k.T, kubernetesPatience, func() error { _, unknown := k.know("node02", "172.16.10.12"); return unknown })
	k.Logf("the others had forgotten node02 %s after it was deleted", took.Round(10*time.Millisecond))
	took += testlab.Eventually(k.T, kubernetesPatience, func() error {
		blocks, err := k.kubectl("", "get", "ipamblocks", "-o", "jsonpath={.items[*].spec.affinity}")
		if err == nil && strings.Contains(blocks, "node02") {
			err = fmt.Errorf("blocks are still those of node02: %s", blocks)
		}
		return err
	})
	k.Logf("its blocks were released %s after it was deleted", took.Round(10*time.Millisecond))
}

// nodeJoins has a new machine join under the name of the node that left.
func (k *kubernetes) nodeJoins() {
	k.onNode("node02", "rm -rf /var/lib/twill/* /etc/cni/net.d /opt/cni/bin/twill-cni")
	if err := k.Reboot("node02"); err != nil {
		k.Fatal(err)
	}
	began := time.Now()
	k.must("", "label", "node", "node02", "moving=here")
	k.must(k.pod("joined", "node02", "client", "web"), "apply", "-f", "-")
	after := func(f func() error) time.Duration {
		k.Helper()
		testlab.Eventually(k.T, kubernetesPatience, f)
		return time.Since(began)
	}
	running := after(func() error {
		out, err := k.kubectl("", "get", "pod", "-n", "kube-system", "-l", "app.kubernetes.io/component=agent", "--field-selector", "spec.nodeName=node02",
			"-o", "jsonpath={.items[*].status.containerStatuses[*].state.running}")
		if err == nil && out == "" {
			err = errors.New("no agent runs on node02")
		}
		return err
	})
	meshed := after(func() error { known, _ := k.know("node02", "172.16.10.12"); return known })
	k.must("", "wait", "pod", "joined", "--for=condition=Ready", "--timeout", kubernetesPatience.String())
	ready := time.Since(began)
	address := k.must("", "get", "pod", "joined", "-o", "jsonpath={.status.podIP}")
	reached := after(func() error { _, err := k.get("master", "client", address); return err })
	for _, d := range []*time.Duration{&running, &meshed, &ready, &reached} {
		*d = d.Round(10 * time.Millisecond)
	}
	k.Logf("after node02 had registered: its agent runs %s, the others have routes %s, a pod is ready %s, and is reached %s", running, meshed, ready, reached)
	k.Logf("it reaches all others %s later", k.serves("node02", "joined").Round(10*time.Millisecond))
}

// nodeMoves gives a node another address while it runs: the others send to that
// one.
func (k *kubernetes) nodeMoves() {
	const was, is = "172.16.10.12", "172.16.10.99"
	if err := k.Control(lab.ControlRequest{Process: lab.Kubelet, Node: "node02", Action: lab.Stop}); err != nil {
		k.Fatal(err)
	}
	k.onNode("node02", fmt.Sprintf(`ip addr flush dev eth0; ip addr add %s/24 dev eth0; ip route add default via 172.16.10.1
		sed -i s/%s/%s/ /etc/hosts`, is, was, is))
	if err := k.Control(lab.ControlRequest{Process: lab.Kubelet, Node: "node02", Action: lab.Start}); err != nil {
		k.Fatal(err)
	}
	told := testlab.Eventually(k.T, kubernetesPatience, func() error {
		addresses, err := k.kubectl("", "get", "node", "node02", "-o", "jsonpath={.status.addresses}")
		if err == nil && !strings.Contains(addresses, is) {
			err = fmt.Errorf("node02 has the addresses %s", addresses)
		}
		return err
	})
	took := testlab.Eventually(k.T, kubernetesPatience, func() error {
		known, _ := k.know("node02", is)
		_, unknown := k.know("node02", was)
		return errors.Join(known, unknown)
	})
	k.Logf("the kubelet told of the address after %s, and %s later the others sent to it", told.Round(10*time.Millisecond), took.Round(10*time.Millisecond))
	address := k.must("", "get", "pod", "joined", "-o", "jsonpath={.status.podIP}")
	took = testlab.Eventually(k.T, kubernetesPatience, func() error { _, err := k.get("master", "client", address); return err })
	took += k.serves("node02", "joined")
	k.Logf("its pods reached and were reached %s after that", took.Round(10*time.Millisecond))
	began := time.Now()
	k.must(k.pod("after", "node02", "client", "web"), "apply", "-f", "-")
	k.must("", "wait", "pod", "after", "--for=condition=Ready", "--timeout", kubernetesPatience.String())
	k.Logf("another pod was ready there after %s", time.Since(began).Round(10*time.Millisecond))
	if out := k.onNode("node02", "nft list ruleset; ip -d link show twill-vxlan; ip route; ip neigh"); strings.Contains(out, was) {
		k.Errorf("node02 still has its old address somewhere:\n%s", out)
	}
}

// nodeReboots takes a node's power away.
func (k *kubernetes) nodeReboots() {
	const node = "node01"
	before, err := k.allocations(node)
	if err != nil {
		k.Fatal(err)
	}
	began := time.Now()
	if err := k.Reboot(node); err != nil {
		k.Fatal(err)
	}
	if left := k.onNode(node, "ls /sys/class/net; ls /run/netns /run/twill 2>/dev/null; true"); strings.Contains(left, "twill") || strings.Contains(left, "cni") {
		k.Errorf("after the reboot, %s still has\n%s", node, left)
	}
	k.Logf("the kubelet runs again after %s", time.Since(began).Round(100*time.Millisecond))
	testlab.Eventually(k.T, kubernetesPatience, func() error {
		now, err := k.allocations(node)
		if err != nil {
			return err
		}
		for id, a := range before {
			if _, still := now[id]; still {
				return fmt.Errorf("%s still has %v of %s", node, a.Addresses, a.Pod)
			}
		}
		return k.agrees(node, now)
	})
	k.Logf("all pods run again after %s", time.Since(began).Round(100*time.Millisecond))
	k.podsReady()
	k.serves("master", "client")
	k.serves(node, "guest")
	k.Logf("they reach and are reached as before after %s", time.Since(began).Round(100*time.Millisecond))
}

// agrees holds what a node gave out against the pods that the API server has on it,
// and the addresses of all pods against each other.
func (k *kubernetes) agrees(node string, given map[string]allocation) error {
	out, err := k.kubectl("", "get", "pod", "-A", "-o",
		`jsonpath={range .items[?(@.status.phase=="Running")]}{.spec.nodeName} {.metadata.name} {.status.podIP} {.spec.hostNetwork}{"\n"}{end}`)
	if err != nil {
		return err
	}
	users, want := map[string]string{}, map[string]string{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 4 && f[3] == "true" {
			continue
		}
		if len(f) != 3 {
			return fmt.Errorf("a pod has no address: %q", line)
		}
		if other := users[f[2]]; other != "" {
			return fmt.Errorf("pods %s and %s have the address %s", other, f[1], f[2])
		}
		users[f[2]] = f[1]
		if f[0] == node {
			want[f[1]] = f[2]
		}
	}
	have := map[string]string{}
	var routes []netip.Addr
	for _, a := range given {
		have[a.Pod] = a.Addresses[0].String()
		routes = append(routes, a.Addresses[0])
	}
	if !maps.Equal(have, want) || len(given) != len(want) {
		return fmt.Errorf("%s gave out %v, its pods have %v", node, have, want)
	}
	devices, err := k.At(k.Context(), lab.Node(node), "sh", "-c", "ip route show proto 84 | awk '/ dev tw-/{print $1}'")
	if err != nil {
		return err
	}
	var routed []netip.Addr
	for _, text := range strings.Fields(devices) {
		routed = append(routed, netip.MustParseAddr(text))
	}
	slices.SortFunc(routes, netip.Addr.Compare)
	slices.SortFunc(routed, netip.Addr.Compare)
	if !slices.Equal(routes, routed) {
		return fmt.Errorf("%s gave out %v, and has routes to %v", node, routes, routed)
	}
	return nil
}
