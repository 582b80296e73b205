package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/twill-net/twill/api"
)

// DefaultPodCIDR is where pods' addresses are from where a cluster says nothing.
var DefaultPodCIDR = netip.MustParsePrefix("10.244.0.0/16")

// Plan is what an installation would do.
type Plan struct {
	Facts     *Facts
	Pods      Ranges
	Objects   []*unstructured.Unstructured
	Changes   map[string]string // what becomes of an object, by nameOf
	Obstacles []Obstacle
}

// Plan looks at the cluster and says what an installation would do.
func (c *Cluster) Plan(ctx context.Context, o Options) (*Plan, error) {
	facts, err := c.Detect(ctx)
	if err != nil {
		return nil, err
	}
	p := &Plan{Facts: facts, Pods: facts.Pods, Changes: map[string]string{}}
	switch {
	case len(o.PodCIDRs) > 0:
		p.Pods = Ranges{o.PodCIDRs, "--pod-cidr"}
	case len(p.Pods.List) == 0:
		p.Pods = Ranges{[]netip.Prefix{DefaultPodCIDR}, "the cluster says nothing"}
	}
	o.PodCIDRs = p.Pods.List
	p.Obstacles = facts.obstacles(o)
	if p.Objects, err = Objects(o); err != nil {
		return nil, err
	}
	for _, object := range p.Objects {
		if p.Changes[nameOf(object)], err = c.apply(ctx, object, true); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Print tells people what was found, what would be done, and what is in the way.
func (p *Plan) Print(w io.Writer) {
	ready := 0
	for _, n := range p.Facts.Nodes {
		if isReady(&n) {
			ready++
		}
	}
	fmt.Fprintf(w, "cluster     %s, Kubernetes %s, %d nodes of which %d are ready\n", p.Facts.Server, p.Facts.Version, len(p.Facts.Nodes), ready)
	fmt.Fprintf(w, "pods        %s\n", p.Pods)
	fmt.Fprintf(w, "services    %s\n", p.Facts.Services)
	if where := p.Facts.serviceProxy(); where != "" {
		fmt.Fprintf(w, "kube-proxy  DaemonSet %s: agents leave Services to it, and take them over when it is deleted\n", where)
	}
	for _, pool := range p.Facts.Pools {
		fmt.Fprintf(w, "pool        %s has %s already: pods get addresses from pools, and no other is made of its family\n", pool.Name, pool.Spec.CIDR)
	}
	fmt.Fprintln(w)
	for _, o := range p.Objects {
		fmt.Fprintf(w, "%-10s  %s\n", p.Changes[nameOf(o)], nameOf(o))
	}
	if len(p.Obstacles) > 0 {
		fmt.Fprintln(w)
	}
	for _, o := range p.Obstacles {
		fmt.Fprintf(w, "in the way  %s\n            → %s\n", o.What, o.Remedy)
	}
}

// String is for people.
func (r Ranges) String() string {
	if len(r.List) == 0 {
		return "not known"
	}
	words := make([]string, len(r.List))
	for i, p := range r.List {
		words[i] = p.String()
	}
	return fmt.Sprintf("%s (%s)", strings.Join(words, ", "), r.From)
}

// Apply makes what the plan says.
func (c *Cluster) Apply(ctx context.Context, p *Plan) error {
	for i, o := range p.Objects {
		change, err := c.apply(ctx, o, false)
		if err != nil {
			return err
		}
		c.tell(map[string]string{creates: "created", updates: "updated", keeps: "unchanged"}[change] + " " + nameOf(o))
		last := i+1 == len(p.Objects) || p.Objects[i+1].GetKind() != o.GetKind()
		if o.GetKind() == "CustomResourceDefinition" && last {
			if err := c.established(ctx, p.Objects[:i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// established waits until the API server serves custom resources: agents and the
// controller ask for them at once.
func (c *Cluster) established(ctx context.Context, definitions []*unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, d := range definitions {
		err := until(ctx, func() (bool, error) {
			var now struct {
				Status struct {
					Conditions []struct{ Type, Status string }
				}
			}
			if _, err := c.get(ctx, pathOf(d), &now); err != nil {
				return false, err
			}
			return slices.Contains(now.Status.Conditions, struct{ Type, Status string }{"Established", "True"}), nil
		})
		if err != nil {
			return fmt.Errorf("wait until %s is served: %w", d.GetName(), err)
		}
	}
	return nil
}

const (
	agentPath = "/apis/apps/v1/namespaces/" + namespace + "/daemonsets/twill-agent"
	podsPath  = "/api/v1/namespaces/" + namespace + "/pods"
	ourPods   = "app.kubernetes.io/name=twill"
)

// Wait returns when an agent of the version that was applied runs on every node
// and all nodes are ready for pods. It tells of each as it becomes so.
func (c *Cluster) Wait(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ready := map[string]bool{}
	var waiting []string
	err := until(ctx, func() (bool, error) {
		var agents appsv1.DaemonSet
		var nodes corev1.NodeList
		if _, err := c.get(ctx, agentPath, &agents); err != nil {
			return false, err
		}
		if err := c.list(ctx, "/api/v1/nodes", "", &nodes); err != nil {
			return false, err
		}
		waiting = nil
		for _, n := range nodes.Items {
			if !networkIsOurs(&n) || !isReady(&n) {
				waiting = append(waiting, n.Name)
				continue
			}
			if !ready[n.Name] {
				ready[n.Name] = true
				c.tell(fmt.Sprintf("node %s is ready (%d of %d)", n.Name, len(ready), len(nodes.Items)))
			}
		}
		s := agents.Status
		rolledOut := s.ObservedGeneration == agents.Generation && s.UpdatedNumberScheduled == s.DesiredNumberScheduled &&
			s.NumberReady == s.DesiredNumberScheduled && s.DesiredNumberScheduled > 0
		return len(waiting) == 0 && rolledOut, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return c.whyNot(waiting, timeout)
	}
	return err
}

// whyNot says what keeps nodes from being ready.
func (c *Cluster) whyNot(waiting []string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	lines := []string{fmt.Sprintf("not all is ready after %s; nodes that are not: %s; it goes on by itself, twill status tells how far it is",
		timeout, strings.Join(append(waiting, "none")[:max(1, len(waiting))], ", "))}
	var pods corev1.PodList
	if err := c.list(ctx, podsPath, ourPods, &pods); err != nil {
		return errors.Join(errors.New(lines[0]), err)
	}
	for _, p := range pods.Items {
		for _, s := range p.Status.ContainerStatuses {
			if w := s.State.Waiting; w != nil {
				lines = append(lines, fmt.Sprintf("pod %s on %s: %s: %s", p.Name, p.Spec.NodeName, w.Reason, w.Message))
			}
		}
	}
	return errors.New(strings.Join(lines, "\n"))
}

func isReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// networkIsOurs says whether an agent has said that pods may come.
func networkIsOurs(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse && c.Reason == api.NetworkIsUp
	})
}
