package api

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReceivesAnnotation on a Node holds what the node can receive, as JSON of
// Receives. A node publishes it; a sender chooses by it.
const ReceivesAnnotation = GroupTwill + "/receives"

// UnderlayAnnotation on a Node holds how the node is connected to the others, as
// JSON of fabric.Underlay; it is for people and for `twill plan`, no agent
// depends on another node's.
const UnderlayAnnotation = GroupTwill + "/underlay"

// ServicesAnnotation on a Node says that its agent does not serve Services:
// "off". Without it the agent serves them.
const ServicesAnnotation = GroupTwill + "/services"

// WantsAnnotation on a Node holds the ranges in which the node needs a block of
// addresses and finds none free, as prefixes separated by commas. Nodes that own an
// empty block there give one back. The agent removes it when it has an address.
const WantsAnnotation = GroupTwill + "/wants-blocks"

// AddressClaimAnnotation on a Node is the time (RFC 3339) at which its agent found
// that no other Node with one of its addresses has a living agent. It is there as
// long as another Node has one. Of Nodes with one address, that with the latest claim
// has it.
const AddressClaimAnnotation = GroupTwill + "/address-claim"

// ContenderAnnotation on the Lease of a node's agent names a machine whose agent has
// the same node name and does nothing while the holder lives, and the time (RFC 3339)
// at which it last said so.
const ContenderAnnotation = GroupTwill + "/contender"

// LeaseNamespace holds the agents' leases, one a node under LeaseName: renewed
// while the agent is alive, and watched by nobody, so that heartbeats don't fan
// out to every node.
const LeaseNamespace = "kube-node-lease"

// LeaseName is the name of the lease of a node's agent.
func LeaseName(node string) string { return "twill-" + node }

// ConditionPrefix starts the type of the node conditions that an agent reports.
const ConditionPrefix = "Twill"

// NetworkIsUp is an agent's reason for the condition by which Kubernetes lets pods
// onto its node.
const NetworkIsUp = ConditionPrefix + "IsUp"

// Receives maps the name of a back end to what a sender must know to use it. A
// back end that is absent can't be received.
type Receives map[string]ReceiveParameters

// ReceiveParameters is what a sender needs to know about one back end of one
// node.
type ReceiveParameters struct {
	MAC  string `json:"mac,omitempty"` // vxlan: the tunnel device's address
	VNI  int    `json:"vni,omitempty"` // vxlan
	Port int    `json:"port,omitempty"`
}

// NodeReceives reads the node's ReceivesAnnotation. A node without one receives
// nothing.
func NodeReceives(n *corev1.Node) (Receives, error) {
	text, ok := n.Annotations[ReceivesAnnotation]
	if !ok {
		return nil, nil
	}
	var r Receives
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, fmt.Errorf("node %s: annotation %s: %w", n.Name, ReceivesAnnotation, err)
	}
	return r, nil
}

// NodeWants reads the node's WantsAnnotation; what is no prefix is skipped.
func NodeWants(n *corev1.Node) (ranges []netip.Prefix) {
	for text := range strings.SplitSeq(n.Annotations[WantsAnnotation], ",") {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			ranges = append(ranges, prefix.Masked())
		}
	}
	return ranges
}

// SetNodeWants writes the node's WantsAnnotation, or removes it if there are none.
// The node's map of annotations must be the caller's.
func SetNodeWants(n *corev1.Node, ranges []netip.Prefix) {
	delete(n.Annotations, WantsAnnotation)
	if len(ranges) == 0 {
		return
	}
	texts := make([]string, len(ranges))
	for i, prefix := range ranges {
		texts[i] = prefix.String()
	}
	n.Annotations[WantsAnnotation] = strings.Join(texts, ",")
}

// NodeAddressClaim reads the node's AddressClaimAnnotation; zero if it has none.
func NodeAddressClaim(n *corev1.Node) time.Time {
	claim, err := time.Parse(time.RFC3339Nano, n.Annotations[AddressClaimAnnotation])
	if err != nil {
		return time.Time{}
	}
	return claim
}

// SetNodeAddressClaim writes the node's AddressClaimAnnotation, or removes it if the
// time is zero. The map of annotations must not be shared.
func SetNodeAddressClaim(n *corev1.Node, claim time.Time) {
	delete(n.Annotations, AddressClaimAnnotation)
	if !claim.IsZero() {
		metav1.SetMetaDataAnnotation(&n.ObjectMeta, AddressClaimAnnotation, claim.UTC().Format(time.RFC3339Nano))
	}
}

// NodeAddresses returns the node's internal addresses, at most one of a family,
// IPv4 first. Text that is not an address is skipped, and so are addresses with a
// zone, which mean something on their own host only.
func NodeAddresses(n *corev1.Node) []netip.Addr {
	var v4, v6 netip.Addr
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		ip, err := netip.ParseAddr(a.Address)
		switch {
		case err != nil || ip.Zone() != "":
		case ip.Unmap().Is4() && !v4.IsValid():
			v4 = ip.Unmap()
		case !ip.Unmap().Is4() && !v6.IsValid():
			v6 = ip
		}
	}
	var out []netip.Addr
	for _, a := range []netip.Addr{v4, v6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}
