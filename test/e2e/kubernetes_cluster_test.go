package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testkube"
	"github.com/twill-net/twill/test/testlab"
)

// kubernetesPatience bounds each wait for Kubernetes, which takes its time where
// other tests run.
const kubernetesPatience = 3 * time.Minute

// kubernetes is a lab with a real cluster.
type kubernetes struct {
	*testing.T
	*testlab.Lab
}

func (k *kubernetes) file(path string) string {
	k.Helper()
	path, err := filepath.Abs(filepath.Join("../..", path))
	if err != nil {
		k.Fatal(err)
	}
	return path
}

func (k *kubernetes) kubeconfig() string {
	argv, err := k.Config.Kubectl(nil)
	if err != nil {
		k.Fatal(err)
	}
	return argv[len(argv)-1]
}

func (k *kubernetes) kubectl(input string, args ...string) (string, error) {
	argv, err := k.Config.Kubectl(args)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(k.Context(), kubernetesPatience+time.Minute)
	defer cancel()
	cmd, err := k.Command(ctx, lab.Node("master"), argv...)
	if err != nil {
		return "", err
	}
	var problem strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &problem
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return string(out), err
}

func (k *kubernetes) must(input string, args ...string) string {
	k.Helper()
	out, err := k.kubectl(input, args...)
	if err != nil {
		k.Fatal(err)
	}
	return out
}

// startKubernetes is a cluster without a network.
func startKubernetes(t *testing.T) *kubernetes {
	t.Helper()
	programs := filepath.Dir(testkube.Program(t, "kubelet"))
	if _, err := exec.LookPath("containerd"); err != nil {
		t.Skip("containerd is not installed")
	}
	return &kubernetes{t, testlab.Up(t, lab.Config{Nodes: 3, Kubernetes: programs})}
}

// newKubernetes is a cluster with Twill on it, all of whose nodes are ready.
func newKubernetes(t *testing.T) *kubernetes {
	t.Helper()
	k := startKubernetes(t)
	began := time.Now()
	k.must("", "apply", "-f", k.file("deploy/crds"), "-f", k.file("deploy/twill.yaml"))
	k.must("", "wait", "node", "--all", "--for=condition=Ready", "--timeout", kubernetesPatience.String())
	t.Logf("all nodes are ready %s after they had no network", time.Since(began).Round(100*time.Millisecond))
	return k
}

// step is a part of a test that its name tells.
func (k *kubernetes) step(name string, do func(*kubernetes)) {
	k.Run(name, func(t *testing.T) { do(&kubernetes{t, k.Lab}) })
}

func (k *kubernetes) onNode(node, script string) string {
	k.Helper()
	out, err := k.At(k.Context(), lab.Node(node), "sh", "-c", script)
	if err != nil {
		k.Fatalf("%s: %s%v", node, out, err)
	}
	return out
}

// pod is a pod whose command is one of the lab's programs, or busybox's.
func (k *kubernetes) pod(name, node, label string, command ...string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s, run: %s}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
%s`, name, label, label, node, k.container(command, "{}"))
}

// container is the part of a pod's spec that runs a command. It may make its socket
// buffers large, so that datagrams that wait for a processor are not lost.
func (k *kubernetes) container(command []string, lifecycle string) string {
	// Programs of the lab go by the name they are called with.
	script := fmt.Sprintf("for p in web load; do ln -sf /programs/twill-lab /bin/$p; done; exec %s", strings.Join(command, " "))
	return fmt.Sprintf(`
  containers: [{name: c, image: busybox, command: [sh, -c, %q], lifecycle: %s, securityContext: {capabilities: {add: [NET_ADMIN]}},
    volumeMounts: [{name: programs, mountPath: /programs}]}]
  volumes: [{name: programs, hostPath: {path: %s}}]
`, script, lifecycle, k.Config.Executables)
}

// allocation is what the journal of a node's addresses tells of a pod.
type allocation struct {
	ContainerID, IfName string
	Pod, NetNS          string
	Addresses           []netip.Addr
	Leaving             bool
}

// allocations are those of a node.
func (k *kubernetes) allocations(node string) (map[string]allocation, error) {
	journal, err := k.At(k.Context(), lab.Node(node), "cat", "/var/lib/twill/ipam.journal")
	if err != nil {
		return nil, err
	}
	all := map[string]allocation{}
	for line := range strings.Lines(journal) {
		_, text, _ := strings.Cut(line, " ")
		var change struct{ Allocations, Put, Drop []allocation }
		if !strings.HasSuffix(text, "\n") {
			break // it is being written
		}
		if err := json.Unmarshal([]byte(text), &change); err != nil {
			return nil, err
		}
		for _, a := range append(change.Allocations, change.Put...) {
			all[a.ContainerID+a.IfName] = a
		}
		for _, a := range change.Drop {
			delete(all, a.ContainerID+a.IfName)
		}
	}
	return all, nil
}

// networkOf is the file of a pod's network namespace on its node.
func (k *kubernetes) networkOf(node, pod string) (string, error) {
	all, err := k.allocations(node)
	if err != nil {
		return "", err
	}
	for _, a := range all {
		if a.Pod == pod && !a.Leaving {
			return a.NetNS, nil
		}
	}
	return "", fmt.Errorf("%s has no pod %s", node, pod)
}

func (k *kubernetes) namespaceOf(node, pod string) string {
	k.Helper()
	path, err := k.networkOf(node, pod)
	if err != nil {
		k.Fatal(err)
	}
	return path
}

// get is what a pod on a node gets from an address.
func (k *kubernetes) get(node, pod, address string) (string, error) {
	network, err := k.networkOf(node, pod)
	if err != nil {
		return "", err
	}
	return k.At(k.Context(), lab.Node(node), "nsenter", "--net="+network, "wget", "-q", "--timeout=2", "-O", "-", address)
}
