package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/twill-net/twill/api"
)

// Removal is what an uninstallation would do.
type Removal struct {
	Image  string
	Pull   corev1.PullPolicy
	Nodes  []string // that can be cleaned
	Silent []string // whose kubelets don't answer
	Pods   int      // that have addresses of Twill
	Exist  []string // objects, by nameOf
}

// Removal looks at the cluster and says what an uninstallation would do. image is
// what nodes are cleaned by; empty: that of the agents.
func (c *Cluster) Removal(ctx context.Context, image string) (*Removal, error) {
	all, err := objects()
	if err != nil {
		return nil, err
	}
	r := &Removal{Image: image, Pull: corev1.PullIfNotPresent}
	for _, o := range all {
		found, err := c.get(ctx, pathOf(o), nil)
		if err != nil {
			return nil, err
		}
		if found {
			r.Exist = append(r.Exist, nameOf(o))
		}
	}
	var agents appsv1.DaemonSet
	if _, err := c.get(ctx, agentPath, &agents); err != nil {
		return nil, err
	}
	if list := agents.Spec.Template.Spec.Containers; len(list) > 0 {
		r.Pull = list[0].ImagePullPolicy
		if r.Image == "" {
			r.Image = list[0].Image
		}
	}
	var nodes corev1.NodeList
	var pods corev1.PodList
	if err := errors.Join(c.list(ctx, "/api/v1/nodes", "", &nodes), c.list(ctx, "/api/v1/pods", "", &pods)); err != nil {
		return nil, err
	}
	for _, n := range nodes.Items {
		if isSilent(&n) {
			r.Silent = append(r.Silent, n.Name)
		} else {
			r.Nodes = append(r.Nodes, n.Name)
		}
	}
	for _, p := range pods.Items {
		if !p.Spec.HostNetwork && p.Status.PodIP != "" && p.Status.Phase == corev1.PodRunning {
			r.Pods++
		}
	}
	if r.Image == "" {
		return nil, errors.New("there is no DaemonSet twill-agent, so it is not known which image nodes can be cleaned with: say --image")
	}
	return r, nil
}

// Print tells people what would be done.
func (r *Removal) Print(w io.Writer) {
	fmt.Fprintf(w, "stop        all agents and the controller\n")
	fmt.Fprintf(w, "clean       nodes %s, with %s\n", strings.Join(r.Nodes, ", "), r.Image)
	if len(r.Silent) > 0 {
		fmt.Fprintf(w, "not clean   nodes %s: their kubelets don't answer; run twill cleanup --yes --files on each\n", strings.Join(r.Silent, ", "))
	}
	for _, name := range r.Exist {
		fmt.Fprintf(w, "delete      %s\n", name)
	}
	fmt.Fprintf(w, "cut off     %d pods, until another network is installed; nodes won't be ready before\n", r.Pods)
}

// Uninstall stops Twill, cleans all nodes that can be, and removes everything from
// the API, whatever fails in between: all that failed is in the error.
func (c *Cluster) Uninstall(ctx context.Context, r *Removal, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := c.stop(ctx, r); err != nil {
		return fmt.Errorf("stop agents, which would put everything back: %w", err)
	}
	var errs []error
	if len(r.Silent) > 0 {
		errs = append(errs, fmt.Errorf("nodes %s were not cleaned: run twill cleanup --yes --files on each", strings.Join(r.Silent, ", ")))
	}
	errs = append(errs, c.clean(ctx, r), c.forgetNodes(ctx), c.forgetServices(ctx), c.forgetLeases(ctx))
	all, err := objects()
	errs = append(errs, err)
	slices.Reverse(all)
	for _, o := range all {
		errs = append(errs, c.remove(ctx, o))
	}
	return errors.Join(errs...)
}

// remove deletes an object and returns when it is gone: with a definition, its
// custom resources have to go first.
func (c *Cluster) remove(ctx context.Context, o *unstructured.Unstructured) error {
	found, err := c.delete(ctx, pathOf(o))
	if err != nil || !found {
		return err
	}
	err = until(ctx, func() (bool, error) { there, err := c.get(ctx, pathOf(o), nil); return !there, err })
	if err != nil {
		return fmt.Errorf("wait until %s is gone: %w", nameOf(o), err)
	}
	c.tell("deleted " + nameOf(o))
	return nil
}

// stop removes agents and controller, and returns when none runs any more on a node
// that can be asked.
func (c *Cluster) stop(ctx context.Context, r *Removal) error {
	for _, path := range []string{agentPath, "/apis/apps/v1/namespaces/" + namespace + "/deployments/twill-controller"} {
		if _, err := c.delete(ctx, path); err != nil {
			return err
		}
	}
	var left []string
	err := until(ctx, func() (bool, error) {
		var pods corev1.PodList
		if err := c.list(ctx, podsPath, ourPods, &pods); err != nil {
			return false, err
		}
		left = nil
		for _, p := range pods.Items {
			if slices.Contains(r.Nodes, p.Spec.NodeName) && p.Labels[component] != cleanup {
				left = append(left, p.Name)
			}
		}
		return len(left) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("%w; left are %s", err, strings.Join(left, ", "))
	}
	c.tell("stopped agents and controller")
	return nil
}

const (
	component = "app.kubernetes.io/component"
	cleanup   = "cleanup"
)

// clean runs a pod on each node that removes there what is Twill's, all at the same
// time, and tells what they did.
func (c *Cluster) clean(ctx context.Context, r *Removal) error {
	waiting := map[string]bool{}
	var errs []error
	for _, node := range r.Nodes {
		if err := c.startCleaning(ctx, node, r); err != nil {
			errs = append(errs, fmt.Errorf("clean node %s: %w", node, err))
			continue
		}
		waiting[node] = true
	}
	err := until(ctx, func() (bool, error) {
		var pods corev1.PodList
		if err := c.list(ctx, podsPath, component+"="+cleanup+","+ourPods, &pods); err != nil {
			return false, err
		}
		for _, p := range pods.Items {
			node := p.Spec.NodeName
			if waiting[node] && (p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed) {
				errs = append(errs, c.cleaned(ctx, &p))
				delete(waiting, node)
			}
		}
		return len(waiting) == 0, nil
	})
	if err != nil {
		for node := range waiting {
			errs = append(errs, fmt.Errorf("node %s was not cleaned: %w: run twill cleanup --yes --files there", node, err))
		}
	}
	for _, node := range r.Nodes {
		_, err := c.delete(ctx, podsPath+"/"+cleaner(node))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// cleaned tells what a pod did, as far as its node gives its words out.
func (c *Cluster) cleaned(ctx context.Context, p *corev1.Pod) error {
	said, err := c.client.Get().AbsPath(podsPath + "/" + p.Name + "/log").Do(ctx).Raw()
	if err != nil {
		said = nil
	}
	var problems []string
	for line := range strings.Lines(string(said)) {
		line = strings.TrimSpace(line)
		if problem, ok := strings.CutPrefix(line, "error: "); ok {
			problems = append(problems, problem)
			continue
		}
		c.tell(fmt.Sprintf("node %s: %s", p.Spec.NodeName, line))
	}
	if p.Status.Phase == corev1.PodSucceeded {
		c.tell(fmt.Sprintf("node %s is clean", p.Spec.NodeName))
		return nil
	}
	return fmt.Errorf("node %s is not clean: %s", p.Spec.NodeName, strings.Join(problems, "; "))
}

func cleaner(node string) string { return "twill-cleanup-" + node }

// startCleaning makes the pod for one node. It goes past the scheduler, which gives
// nothing to a node without a network.
func (c *Cluster) startCleaning(ctx context.Context, node string, r *Removal) error {
	path := podsPath + "/" + cleaner(node)
	// What an earlier uninstallation left has done its work, and is no answer.
	found, err := c.delete(ctx, path)
	if err != nil {
		return err
	}
	if found {
		err := until(ctx, func() (bool, error) { there, err := c.get(ctx, path, nil); return !there, err })
		if err != nil {
			return err
		}
	}
	no, privileged, grace := false, true, int64(0)
	pod := corev1.Pod{}
	pod.APIVersion, pod.Kind = "v1", "Pod"
	pod.Namespace, pod.Name = namespace, cleaner(node)
	pod.Labels = map[string]string{"app.kubernetes.io/name": "twill", component: cleanup}
	pod.Spec = corev1.PodSpec{
		NodeName: node, HostNetwork: true, RestartPolicy: corev1.RestartPolicyNever, PriorityClassName: "system-node-critical",
		AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &grace,
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Containers: []corev1.Container{{
			Name: cleanup, Image: r.Image, ImagePullPolicy: r.Pull,
			Args:            []string{"cleanup", "--yes", "--files", "--root=/host"},
			SecurityContext: &corev1.SecurityContext{Privileged: &privileged},
			VolumeMounts:    []corev1.VolumeMount{{Name: "host", MountPath: "/host"}},
		}},
		Volumes: []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}},
	}
	return c.create(ctx, podsPath, &pod)
}

// forgetNodes takes from Node objects what agents wrote there.
func (c *Cluster) forgetNodes(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := c.list(ctx, "/api/v1/nodes", "", &nodes); err != nil {
		return err
	}
	var errs []error
	for _, n := range nodes.Items {
		path := "/api/v1/nodes/" + n.Name
		annotations := map[string]any{}
		for name := range n.Annotations {
			if strings.HasPrefix(name, api.GroupTwill+"/") {
				annotations[name] = nil
			}
		}
		if len(annotations) > 0 {
			errs = append(errs, c.patch(ctx, path, types.MergePatchType, map[string]any{"metadata": map[string]any{"annotations": annotations}}))
		}
		var conditions []any
		for _, condition := range n.Status.Conditions {
			if strings.HasPrefix(string(condition.Type), api.ConditionPrefix) || condition.Reason == api.NetworkIsUp {
				conditions = append(conditions, map[string]any{"type": condition.Type, "$patch": "delete"})
			}
		}
		if len(conditions) > 0 {
			errs = append(errs, c.patch(ctx, path+"/status", types.StrategicMergePatchType, map[string]any{"status": map[string]any{"conditions": conditions}}))
		}
	}
	return errors.Join(errs...)
}

// forgetServices takes from Services the conditions that the controller wrote there.
func (c *Cluster) forgetServices(ctx context.Context) error {
	var services corev1.ServiceList
	if err := c.list(ctx, "/api/v1/services", "", &services); err != nil {
		return err
	}
	var errs []error
	for _, s := range services.Items {
		var conditions []any
		for _, condition := range s.Status.Conditions {
			if strings.HasPrefix(condition.Type, api.GroupTwill+"/") {
				conditions = append(conditions, map[string]any{"type": condition.Type, "$patch": "delete"})
			}
		}
		if len(conditions) > 0 {
			path := "/api/v1/namespaces/" + s.Namespace + "/services/" + s.Name + "/status"
			errs = append(errs, c.patch(ctx, path, types.StrategicMergePatchType, map[string]any{"status": map[string]any{"conditions": conditions}}))
		}
	}
	return errors.Join(errs...)
}

// forgetLeases removes those of agents and controllers.
func (c *Cluster) forgetLeases(ctx context.Context) error {
	var errs []error
	for _, in := range []string{api.LeaseNamespace, namespace} {
		path := "/apis/coordination.k8s.io/v1/namespaces/" + in + "/leases"
		var leases coordinationv1.LeaseList
		errs = append(errs, c.list(ctx, path, "", &leases))
		for _, l := range leases.Items {
			if strings.HasPrefix(l.Name, api.LeaseName("")) {
				_, err := c.delete(ctx, path+"/"+l.Name)
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// isSilent says whether nothing was heard of the node's kubelet for a while.
func isSilent(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
}
