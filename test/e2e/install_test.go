package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testkube"
	"github.com/twill-net/twill/test/testlab"
)

// nodeState is all that an installation could have left on a node. How many
// connections there are is nobody's doing.
const nodeState = `
	nft -s list ruleset
	ip -d link
	for family in -4 -6; do ip $family route show table all; ip $family rule; ip $family neigh show nud permanent; done
	find /etc/cni /etc/kubernetes /opt/cni /run/twill /var/lib/twill 2>/dev/null | sort
	cd /proc/sys/net && grep -r . . 2>/dev/null | grep -v nf_conntrack_count | sort`

// TestInstallAndUninstall: what uninstall leaves is what install found, on each
// node, with pods that run and with settings that were not the usual ones.
func TestInstallAndUninstall(t *testing.T) {
	testkube.Program(t, "images/nginx.tar")
	k := startKubernetes(t)
	k.onNode("node01", `
		nft add table inet others
		nft add chain inet others input '{ type filter hook input priority 0; }'
		ip route add 10.77.0.0/16 via 172.16.10.10 proto 85
		ip rule add from 10.77.0.1 table 77
		echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter
		echo 0 > /proc/sys/net/ipv4/conf/all/accept_redirects
		echo 1 > /proc/sys/net/ipv4/conf/lo/forwarding
		touch /opt/cni/bin/others`)
	// The controller manager gives nodes their ranges when it comes to it.
	testlab.Eventually(t, kubernetesPatience, func() error {
		if given := k.must("", "get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"); len(strings.Fields(given)) != 3 {
			return fmt.Errorf("nodes have the ranges %q", given)
		}
		return nil
	})
	before := map[string]string{}
	for _, node := range k.Config.NodeNames() {
		before[node] = k.settled(node)
	}

	out, err := k.twill("install", "--yes")
	if err != nil {
		t.Fatalf("%s%v", out, err)
	}
	for _, want := range []string{"pods        10.244.0.0/16 (guessed", "services    10.1.0.0/16 (ServiceCIDR kubernetes)", "created DaemonSet kube-system/twill-agent", "(3 of 3)"} {
		if !strings.Contains(out, want) {
			t.Errorf("install does not say %q:\n%s", want, out)
		}
	}
	if out, err := k.twill("install", "--yes"); err != nil || !strings.Contains(out, "unchanged DaemonSet kube-system/twill-agent") || strings.Contains(out, "updated ") {
		t.Errorf("once more: %s%v", out, err)
	}
	k.must("", "create", "ns", "policy-demo")
	k.must(nginxDeployment, "apply", "-f", "-")
	k.must("", "wait", "-n", "policy-demo", "deployment/nginx", "--for=condition=Available", "--timeout", kubernetesPatience.String())
	k.crowd("old", 30-2)
	for node := range before {
		if k.onNode(node, nodeState) == before[node] {
			t.Errorf("an installed %s can't be told from one before", node)
		}
	}

	out, err = k.twill("uninstall", "--yes")
	if err != nil {
		t.Fatalf("%s%v", out, err)
	}
	t.Log(out)
	for node, want := range before {
		testlab.Eventually(t, kubernetesPatience, func() error {
			if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(k.onNode(node, nodeState), "\n")); diff != "" {
				return fmt.Errorf("%s is not as it was:\n%s", node, diff)
			}
			return nil
		})
	}
	left := k.must("", "get", "all,configmaps,serviceaccounts,roles,rolebindings,leases,clusterroles,clusterrolebindings,crds", "-A", "-o", "name") +
		k.must("", "get", "nodes", "-o", `jsonpath={.items[*].metadata.annotations}{.items[*].status.conditions}`)
	for line := range strings.Lines(left) {
		if strings.Contains(strings.ToLower(line), "twill") {
			t.Errorf("the API still has %s", line)
		}
	}
	k.step("again", (*kubernetes).installedAgain)
}

// crowd runs pods, and returns when they are ready.
func (k *kubernetes) crowd(name string, replicas int) {
	k.Helper()
	k.must(fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: policy-demo}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: busybox, command: [sleep, "1000000"]}]
`, name, replicas), "apply", "-f", "-")
	k.must("", "rollout", "status", "-n", "policy-demo", "deployment/"+name, "--timeout", kubernetesPatience.String())
}

// podAddresses are those of all pods with a network of their own, by NAMESPACE/NAME.
func (k *kubernetes) podAddresses() map[string]string {
	k.Helper()
	all := map[string]string{}
	const each = `{range .items[?(@.status.podIP)]}{.spec.hostNetwork} {.metadata.namespace}/{.metadata.name} {.status.podIP}{"\n"}{end}`
	for line := range strings.Lines(k.must("", "get", "pods", "-A", "-o", "jsonpath="+each)) {
		if words := strings.Fields(line); len(words) == 2 {
			all[words[0]] = words[1]
		}
	}
	return all
}

// installedAgain: the pods of the first installation still run, cut off. None of
// their addresses is given to another pod, and each of them is named until it is
// gone.
func (k *kubernetes) installedAgain() {
	old := k.podAddresses()
	if len(old) < 30 {
		k.Fatalf("only %d pods run: %v", len(old), old)
	}
	if out, err := k.twill("install", "--yes"); err != nil {
		k.Fatalf("%s%v", out, err)
	}
	k.crowd("new", 30)
	holders := map[string]string{}
	for pod, address := range k.podAddresses() {
		if other, taken := holders[address]; taken {
			k.Errorf("%s is the address of %s and of %s", address, pod, other)
		}
		holders[address] = pod
	}
	// status fails where something is wrong.
	testlab.Eventually(k.T, kubernetesPatience, func() (err error) {
		status, _ := k.twill("status")
		for pod, address := range old {
			if !strings.Contains(status, fmt.Sprintf("%s: has %s and no interface", pod, address)) {
				err = fmt.Errorf("%s is not named:\n%s", pod, status)
			}
		}
		return err
	})
	if status, _ := k.twill("status"); strings.Count(status, "and no interface") != len(old) {
		k.Errorf("not only the %d pods that are cut off are named:\n%s", len(old), status)
	}
	for pod := range old {
		namespace, name, _ := strings.Cut(pod, "/")
		k.must("", "delete", "pod", "-n", namespace, name, "--wait=false")
	}
	testlab.Eventually(k.T, kubernetesPatience, func() error {
		status, err := k.twill("status")
		if err != nil {
			err = fmt.Errorf("%w:\n%s", err, status)
		}
		return err
	})
	k.must("", "rollout", "status", "-n", "policy-demo", "deployment/old", "--timeout", kubernetesPatience.String())
	k.Logf("%d pods of the first installation and 30 new ones have %d addresses", len(old), len(holders))
}

// settled is the state of a node once the kubelet has made its own chains, of
// which the last is one of IPv4 or IPv6.
func (k *kubernetes) settled(node string) (state string) {
	k.Helper()
	testlab.Eventually(k.T, kubernetesPatience, func() error {
		last := state
		if state = k.onNode(node, nodeState); state != last {
			return fmt.Errorf("%s still changes", node)
		}
		if _, err := exec.LookPath("iptables"); err == nil && !strings.Contains(state, "KUBE-KUBELET-CANARY") {
			return fmt.Errorf("the kubelet of %s has not made its chains", node)
		}
		return nil
	})
	return state
}

// twill runs a command as an administrator of the cluster.
func (k *kubernetes) twill(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(k.Context(), 2*kubernetesPatience)
	defer cancel()
	cmd, err := k.Command(ctx, lab.Node("master"), append([]string{"twill", "--kubeconfig", k.kubeconfig()}, args...)...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}
