package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twill-net/twill/deploy"
	"github.com/twill-net/twill/lab"
)

const nginxDeployment = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: nginx
  namespace: policy-demo
spec:
  replicas: 2
  selector:
    matchLabels:
      app: nginx
  template:
    metadata:
      labels:
        app: nginx
    spec:
      containers:
      - name: nginx
        image: nginx
        ports:
        - containerPort: 80
`

// clusterPatience is more than any step may take.
const clusterPatience = 4 * time.Minute

// kubernetesSteps are the classic exercise as it is typed, on a real cluster.
var kubernetesSteps = []step{
	{
		"A real cluster of three nodes, without a network",
		"three nodes; none is ready, since the kubelets find no CNI configuration",
		(*story).cluster,
	},
	{
		"Twill is installed",
		"all nodes are ready, in less than 30 s",
		(*story).install,
	},
	{
		"A Deployment of nginx, and a Service in front of it",
		"both pods run, each with an address of its own; the Service has a cluster IP",
		typed("kubectl create ns policy-demo", "",
			"kubectl apply -f nginx-deployment.yaml", "",
			"kubectl expose -n policy-demo deployment nginx --port=80", "",
			"kubectl rollout status -n policy-demo deployment nginx --timeout=2m", "successfully rolled out",
			"kubectl get -n policy-demo pods,service -o wide", "service/nginx"),
	},
	{
		"A pod reaches the Service by its name",
		"the page of nginx",
		typed(accessCommand, welcome),
	},
	{
		"NetworkPolicy access-nginx: only pods labelled run=access get to nginx",
		"a pod named access is let in: kubectl run gives it that label; another is not",
		typed("kubectl create -f - <<EOF\n"+policyManifest+"EOF", "networkpolicy.networking.k8s.io/access-nginx created",
			accessCommand, welcome,
			"kubectl run -n policy-demo cant-access --rm -i --restart=Never --image busybox -- sh -c 'timeout 5 wget -q nginx -O - || echo refused'", "refused"),
	},
	{
		"What is there",
		"the pods with their labels, the policy with what it lets in",
		typed("kubectl get pods -n policy-demo --show-labels", "app=nginx",
			"kubectl get networkpolicy -n policy-demo", "access-nginx",
			"kubectl describe networkpolicy -n policy-demo access-nginx", "PodSelector: run=access",
			"twill status", "nothing is wrong"),
	},
	{
		"Without the policy everybody is let in again",
		"the page of nginx, for the pod that was refused",
		typed("kubectl delete networkpolicy -n policy-demo access-nginx", "deleted",
			"kubectl run -n policy-demo cant-access --rm -i --restart=Never --image busybox -- wget -q nginx -O -", welcome,
			"kubectl delete ns policy-demo", "deleted"),
	},
}

// Without --restart=Never kubectl waits until it sees the pod ready, which it is for
// milliseconds only: a kubelet looks once a second.
const (
	accessCommand = "kubectl run -n policy-demo access --rm -i --restart=Never --image busybox -- wget -q nginx -O -"
	welcome       = "Welcome to nginx!"
)

func (s *story) cluster(ctx context.Context) (string, error) {
	// It takes what it takes: containers' runtimes and kubelets start.
	if err := lab.Up(ctx, s.cfg, func(string) {}); err != nil {
		return "", err
	}
	var err error
	if s.client, err = lab.Dial(s.cfg.Name); err != nil {
		return "", err
	}
	if s.work, err = os.MkdirTemp("", "twill-demo-"); err != nil {
		return "", err
	}
	definitions, err := deploy.CustomResources()
	if err != nil {
		return "", err
	}
	for name, text := range map[string][]byte{
		"crds.yaml": bytes.Join(definitions, []byte("\n---\n")), "twill.yaml": deploy.Manifest(), "nginx-deployment.yaml": []byte(nginxDeployment),
	} {
		if err := os.WriteFile(filepath.Join(s.work, name), text, 0o644); err != nil {
			return "", err
		}
	}
	return s.typed(ctx, []string{"kubectl get nodes", "NotReady"})
}

func (s *story) install(ctx context.Context) (string, error) {
	began := time.Now()
	seen, err := s.typed(ctx, []string{
		"kubectl apply -f crds.yaml -f twill.yaml", "daemonset.apps/twill-agent created",
		"kubectl wait node --all --for=condition=Ready --timeout=2m", "condition met",
	})
	took := time.Since(began)
	if err != nil {
		return seen, err
	}
	seen += fmt.Sprintf("\nall nodes are ready %.1f s after kubectl apply began", took.Seconds())
	if took > 30*time.Second {
		return seen, fmt.Errorf("that took longer than 30 s")
	}
	return seen, nil
}

// typed is a step of commands, each followed by what its output has to contain.
func typed(commands ...string) func(*story, context.Context) (string, error) {
	return func(s *story, ctx context.Context) (string, error) { return s.typed(ctx, commands) }
}

// typed executes commands as they are typed on the master.
func (s *story) typed(ctx context.Context, commands []string) (string, error) {
	argv, err := s.client.Config.Kubectl(nil)
	if err != nil {
		return "", err
	}
	kubeconfig := argv[len(argv)-1]
	prepare := fmt.Sprintf("exec 2>&1; cd %s; export KUBECONFIG=%s TWILL_KUBECONFIG=%s PATH=%s:$PATH\n", s.work, kubeconfig, kubeconfig, s.cfg.Kubernetes)
	var seen strings.Builder
	for i := 0; i < len(commands); i += 2 {
		line, wants := commands[i], commands[i+1]
		fmt.Fprintf(&seen, "$ %s\n", line)
		said, err := s.at(ctx, lab.Node("master"), "sh", "-c", prepare+line)
		if failed := (*commandError)(nil); errors.As(err, &failed) {
			err = fmt.Errorf("exit code %d", failed.code)
		}
		seen.WriteString(strings.TrimSpace(said) + "\n")
		switch {
		case err != nil:
			return seen.String(), fmt.Errorf("%s: %w", line, err)
		case !strings.Contains(said, wants):
			return seen.String(), fmt.Errorf("%s: its output does not have %q", line, wants)
		}
	}
	return seen.String(), nil
}
