package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/controller"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/store"
)

// clusterStatus is the cluster on one screen.
type clusterStatus struct {
	Nodes      []nodeStatus   `json:"nodes"`
	Preference []string       `json:"fabricPreference"`
	Counts     map[string]int `json:"counts"`
	Conditions []trouble      `json:"conditions"`
}

type nodeStatus struct {
	Name     string   `json:"name"`
	Address  []string `json:"addresses"`
	Agent    string   `json:"agent"` // "ready", "silent for 20s", "never seen"
	Receives []string `json:"receives"`
	Pods     int      `json:"pods"`
	Blocks   []string `json:"blocks"`
	MTU      int      `json:"mtu"` // of the underlay
	// Revisions are up to which resourceVersion of each kind the node's kernel has
	// intent; Behind are kinds of which the store has a newer object.
	Revisions api.Programmed `json:"revisions"`
	Behind    []string       `json:"behind"`
}

// trouble is something that is wrong, with the remedy.
type trouble struct {
	Subject string `json:"subject"` // "node NAME", "service NAMESPACE/NAME"
	Code    string `json:"code"`
	Detail  string `json:"detail"`
	Remedy  string `json:"remedy"`
}

func newTrouble(subject string, code health.Code, detail string) trouble {
	d, _ := health.Lookup(code)
	return trouble{subject, string(code), detail, d.Remedy}
}

func newStatus(s *Session) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "The cluster on one screen: nodes, fabric, counts, and all that is wrong",
		Long: `Show the cluster on one screen: its nodes and whether their agents live, the
fabric's order of preference, how many objects there are, and everything that
is wrong, each with what to do about it.

REVISION is the newest change in the store that the node has in its kernel;
"(behind)" says that the store has a newer namespace, pool, service, policy or
fabric configuration. Agents publish it within 200 ms, in clusters of more than
40 nodes within 5 ms a node, and never later than 5 s; -o json has one for each
kind.

Exit code 1 if something is wrong.`,
		Example: `  twill status
  twill status -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" && output != "yaml" {
				return usagef("output %q: use json or yaml", output)
			}
			st, err := s.OpenStore(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			status, err := readStatus(cmd.Context(), st, s.now())
			if err != nil {
				return err
			}
			if output != "" {
				err = encode(cmd.OutOrStdout(), output, status)
			} else {
				printStatus(cmd.OutOrStdout(), status)
			}
			if err == nil && len(status.Conditions) > 0 {
				if n := len(status.Conditions); n > 1 {
					return fmt.Errorf("%d conditions need attention", n)
				}
				return errors.New("a condition needs attention")
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml; default for people")
	return cmd
}

func readStatus(ctx context.Context, st store.Store, now time.Time) (*clusterStatus, error) {
	lists := map[*api.Kind][]api.Object{}
	for _, kind := range api.Kinds() {
		list, err := st.List(ctx, kind, "")
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", kind.Plural, err)
		}
		lists[kind] = list.Items
	}
	out := &clusterStatus{Preference: fabric.DefaultPreference, Counts: map[string]int{}, Conditions: []trouble{}}
	for _, obj := range lists[api.FabricConfigurationKind] {
		out.Preference = fabric.ConfigFrom(obj.(*api.FabricConfiguration)).Preference
	}
	for _, kind := range []*api.Kind{api.NamespaceKind, api.WorkloadEndpointKind, api.ServiceKind, api.NetworkPolicyKind} {
		out.Counts[kind.Plural] = len(lists[kind])
	}
	leases := map[string]*coordinationv1.Lease{}
	for _, obj := range lists[api.LeaseKind] {
		leases[obj.GetName()] = obj.(*coordinationv1.Lease)
	}
	for _, obj := range lists[api.NodeKind] {
		n := obj.(*corev1.Node)
		lease := leases[api.LeaseName(n.Name)]
		node, wrong := statusOf(n, lease, now)
		if lease != nil {
			if p, err := api.LeaseProgrammed(lease); err == nil && p != nil {
				node.Revisions = p
			}
			node.Behind = behind(node.Revisions, lists)
		}
		for _, w := range lists[api.WorkloadEndpointKind] {
			if w.(*api.WorkloadEndpoint).Spec.Node == n.Name {
				node.Pods++
			}
		}
		for _, b := range lists[api.IPAMBlockKind] {
			if owner, _ := b.(*api.IPAMBlock).Owner(); owner == n.Name {
				node.Blocks = append(node.Blocks, b.(*api.IPAMBlock).Spec.CIDR)
			}
		}
		slices.Sort(node.Blocks)
		out.Nodes = append(out.Nodes, node)
		out.Conditions = append(out.Conditions, troublesOf(n, node, wrong)...)
	}
	for _, obj := range lists[api.ServiceKind] {
		svc := obj.(*corev1.Service)
		c := meta.FindStatusCondition(svc.Status.Conditions, controller.AllocatedCondition)
		if c != nil && c.Status == metav1.ConditionFalse {
			out.Conditions = append(out.Conditions, newTrouble("service "+api.KeyOf(svc).String(), health.ServiceNotAllocated, c.Message))
		}
	}
	return out, nil
}

// statusOf also says what is wrong with the node's lease, if anything is.
func statusOf(n *corev1.Node, lease *coordinationv1.Lease, now time.Time) (node nodeStatus, wrong health.Code) {
	node = nodeStatus{Name: n.Name, Address: []string{}, Receives: []string{}, Blocks: []string{}, Revisions: api.Programmed{}, Behind: []string{}}
	for _, a := range api.NodeAddresses(n) {
		node.Address = append(node.Address, a.String())
	}
	if receives, err := api.NodeReceives(n); err == nil {
		for name := range receives {
			node.Receives = append(node.Receives, name)
		}
		slices.Sort(node.Receives)
	}
	var u fabric.Underlay
	if err := json.Unmarshal([]byte(n.Annotations[api.UnderlayAnnotation]), &u); err == nil {
		node.MTU = u.MTU
	}
	node.Agent, wrong = agentState(lease, now)
	return node, wrong
}

// behind lists the kinds of which the store has an object that is newer than what
// an agent has programmed. A deletion is not seen.
func behind(programmed api.Programmed, lists map[*api.Kind][]api.Object) []string {
	var kinds []string
	for _, kind := range api.Kinds() {
		newest := uint64(0)
		for _, obj := range lists[kind] {
			newest = max(newest, api.VersionOf(obj))
		}
		if kind.WrittenByPeople() && newest > programmed.Version(kind) {
			kinds = append(kinds, kind.Plural)
		}
	}
	return kinds
}

// agentState says whether an agent is alive by its lease, and what is wrong if not.
func agentState(lease *coordinationv1.Lease, now time.Time) (text string, wrong health.Code) {
	if lease == nil || lease.Spec.RenewTime == nil || lease.Spec.LeaseDurationSeconds == nil {
		return "never seen", health.AgentSilent
	}
	age, valid := now.Sub(lease.Spec.RenewTime.Time), time.Duration(*lease.Spec.LeaseDurationSeconds)*time.Second
	switch {
	case age > valid:
		return fmt.Sprintf("silent for %s", age.Round(time.Second)), health.AgentSilent
	case age < -valid:
		return fmt.Sprintf("ahead by %s", (-age).Round(time.Second)), health.ClockAhead
	}
	return "ready", ""
}

func troublesOf(n *corev1.Node, node nodeStatus, wrong health.Code) []trouble {
	var out []trouble
	add := func(code health.Code, detail string) {
		out = append(out, newTrouble("node "+n.Name, code, detail))
	}
	if wrong != "" {
		add(wrong, node.Agent)
	}
	for _, c := range n.Status.Conditions {
		code, ours := strings.CutPrefix(string(c.Type), api.ConditionPrefix)
		if ours && c.Status == corev1.ConditionTrue {
			add(health.Code(code), c.Message)
		}
	}
	return out
}

func revisionText(n nodeStatus) string {
	switch newest := n.Revisions.Newest(); {
	case newest == 0:
		return "-"
	case len(n.Behind) > 0:
		return fmt.Sprintf("%d (behind)", newest)
	default:
		return fmt.Sprint(newest)
	}
}

func printStatus(w io.Writer, s *clusterStatus) {
	t := table{columns: []string{"NODE", "ADDRESSES", "AGENT", "REVISION", "RECEIVES", "PODS", "BLOCKS", "MTU"}}
	for _, n := range s.Nodes {
		t.add(n.Name, strings.Join(n.Address, ","), n.Agent, revisionText(n), strings.Join(n.Receives, ","), fmt.Sprint(n.Pods),
			orNone(strings.Join(n.Blocks, ",")), fmt.Sprint(n.MTU))
	}
	t.print(w)
	fmt.Fprintf(w, "\nfabric    %s, in this order\n", strings.Join(s.Preference, ", "))
	fmt.Fprintf(w, "objects   %d namespaces, %d pods, %d services, %d network policies\n", s.Counts[api.NamespaceKind.Plural],
		s.Counts[api.WorkloadEndpointKind.Plural], s.Counts[api.ServiceKind.Plural], s.Counts[api.NetworkPolicyKind.Plural])
	if len(s.Conditions) == 0 {
		fmt.Fprintln(w, "health    nothing is wrong")
		return
	}
	fmt.Fprintln(w)
	for _, c := range s.Conditions {
		fmt.Fprintf(w, "%s  %s\n", printable(string(c.Code)), printable(c.Subject))
		for line := range strings.Lines(c.Detail) {
			fmt.Fprintf(w, "    %s\n", printable(strings.TrimRight(line, "\n")))
		}
		fmt.Fprintf(w, "    → %s\n", c.Remedy)
	}
}
