package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testkube"
	"github.com/twill-net/twill/test/testlab"
)

const nginxDeployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx, namespace: policy-demo}
spec:
  replicas: 2
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: nginx, image: nginx, ports: [{containerPort: 80}]}
`

const accessNginx = `kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: access-nginx, namespace: policy-demo}
spec:
  podSelector: {matchLabels: {app: nginx}}
  ingress:
  - from:
    - podSelector: {matchLabels: {run: access}}
`

// TestOnKubernetes installs Twill into a real cluster of three nodes, which has
// no kube-proxy, and does the classic exercise there.
func TestOnKubernetes(t *testing.T) {
	testkube.Program(t, "images/nginx.tar")
	k := newKubernetes(t)
	k.must("", "rollout", "status", "-n", "kube-system", "daemonset/twill-agent", "--timeout", kubernetesPatience.String())
	for _, condition := range strings.Fields(k.must("", "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="NetworkUnavailable")].status}`)) {
		if condition != "False" {
			t.Errorf("NetworkUnavailable is %s", condition)
		}
	}

	k.must("", "create", "ns", "policy-demo")
	k.must(nginxDeployment, "apply", "-f", "-")
	k.must("", "expose", "-n", "policy-demo", "deployment", "nginx", "--port=80")
	k.must("", "wait", "-n", "policy-demo", "deployment/nginx", "--for=condition=Available", "--timeout", kubernetesPatience.String())
	k.must("", "rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout", kubernetesPatience.String())

	k.reaches("access", "nginx", true)
	k.reaches("other", "nginx", true)
	k.must(accessNginx, "create", "-f", "-")
	k.reaches("access", "nginx", true)
	k.reaches("other", "nginx", false)
	k.must("", "delete", "networkpolicy", "-n", "policy-demo", "access-nginx")
	k.reaches("other", "nginx", true)

	status, err := k.At(t.Context(), lab.Node("master"), "twill", "--kubeconfig", k.kubeconfig(), "status")
	if err != nil || !strings.Contains(status, "nothing is wrong") {
		t.Errorf("%s%v", status, err)
	}
}

// reaches runs a pod of this name that gets the page from an address, or does not.
// A policy holds for a pod once the agents know its address: that of another pod
// may have to wait for it. It is wget that gives up: no signal ends a container's
// first process unless that awaits it.
func (k *kubernetes) reaches(pod, address string, want bool) {
	k.Helper()
	testlab.Eventually(k.T, kubernetesPatience, func() error {
		page, err := k.kubectl("", "run", "-n", "policy-demo", pod, "--rm", "-i", "--quiet", "--image", "busybox",
			"--restart", "Never", "--", "wget", "-q", "--timeout=4", address, "-O", "-")
		var exit *exec.ExitError
		switch got := strings.Contains(page, "Welcome to nginx"); {
		case got == want:
			return nil
		case err != nil && !errors.As(err, &exit):
			return err
		default:
			return fmt.Errorf("pod %s reaches %s: %t, want %t: %w", pod, address, got, want, err)
		}
	})
}
