package cli

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/pod"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/plan"
)

func newPlan(s *Session) *cobra.Command {
	return &cobra.Command{
		Use:   "plan NODE",
		Short: "Print all that a node must have in its kernel",
		Long: `Print a node's plan: sysctls, devices, addresses, routes, neighbours, forwarding
entries, and the nftables ruleset, in the language of the programs that show the
kernel's side (sysctl, ip, nft).

The plan is computed here from the store by the code that the agent runs; the
node is not asked. Compare it with "nft list table inet twill" on the node.`,
		Example: `  twill plan node01
  twill plan node01 | grep ^route`,
		Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := s.OpenStore(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			planner := plan.NewPlanner(args[0])
			found, nameless := false, 0
			for _, kind := range api.Kinds() {
				list, err := st.List(cmd.Context(), kind, "")
				if err != nil {
					return fmt.Errorf("list %s: %w", kind.Plural, err)
				}
				for _, obj := range list.Items {
					if n, ok := obj.(*corev1.Node); ok && n.Name == args[0] {
						found = true
						if err := setUnderlay(planner, n); err != nil {
							return err
						}
						planner.SetServices(n.Annotations[api.ServicesAnnotation] != "off")
					}
					if w, ok := obj.(*api.WorkloadEndpoint); ok && w.Spec.Node == args[0] && len(w.Spec.IPNetworks) > 0 {
						local, err := localOf(w)
						if err != nil {
							return err
						}
						planner.SetLocal(local)
						if w.Spec.InterfaceName == "" {
							nameless++
						}
					}
					planner.Put(obj)
				}
			}
			if !found {
				return fmt.Errorf("there is no node %q: see `twill get nodes`", args[0])
			}
			if nameless > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: of %d pods only the node knows interface and MAC: the names here are made up, the MACs are 0\n", nameless)
			}
			p := planner.Flush()
			for _, problem := range planner.Problems() {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s %s: %s\n", problem.Code, printable(problem.Subject), printable(problem.Detail))
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), p)
			return err
		},
	}
}

// setUnderlay tells the planner how the node says that it is connected.
func setUnderlay(planner *plan.Planner, n *corev1.Node) error {
	text, ok := n.Annotations[api.UnderlayAnnotation]
	if !ok {
		return fmt.Errorf("node %s has not published how it is connected: does its agent run?", n.Name)
	}
	var u fabric.Underlay
	if err := json.Unmarshal([]byte(text), &u); err != nil {
		return fmt.Errorf("node %s: annotation %s: %w", n.Name, api.UnderlayAnnotation, err)
	}
	planner.SetUnderlay(u)
	return nil
}

// localOf is a pod as its own node's agent knows it. Kubernetes knows neither its
// interface nor its MAC.
func localOf(w *api.WorkloadEndpoint) (plan.Local, error) {
	l := plan.Local{
		Pod: api.KeyOf(w), ContainerID: w.Spec.ContainerID, HostInterface: w.Spec.InterfaceName,
		Labels: w.Labels, Ports: w.Spec.Ports,
	}
	for _, text := range w.Spec.IPNetworks {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return l, fmt.Errorf("pod %s: %w", l.Pod, err)
		}
		l.Addrs = append(l.Addrs, p.Addr())
	}
	if w.Spec.InterfaceName == "" {
		l.HostInterface = pod.HostInterfaceName(l.Pod.String(), "eth0")
		return l, nil
	}
	mac, err := plan.ParseMAC(w.Spec.MAC)
	if err != nil {
		return l, fmt.Errorf("pod %s: %w", l.Pod, err)
	}
	l.MAC = mac
	return l, nil
}
