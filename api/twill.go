package api

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// GroupTwill is the API group of what neither Kubernetes nor Calico defines,
// and the prefix of our annotations.
const GroupTwill = "twill.io"

// FabricConfigurationName is the name of the only FabricConfiguration.
const FabricConfigurationName = "default"

// FabricConfiguration says how nodes of the cluster reach each other's pods.
type FabricConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec FabricConfigurationSpec `json:"spec"`
}

// FabricConfigurationSpec is the specification of a FabricConfiguration.
type FabricConfigurationSpec struct {
	// Preference is the order in which a sender tries the back ends for each
	// peer: the first that the peer receives and that can reach it is used.
	// Default: vxlan, host-gw.
	Preference []string `json:"preference,omitempty"`
	// VXLAN holds the settings of the vxlan back end; all nodes need the same.
	VXLAN *VXLANConfiguration `json:"vxlan,omitempty"`
	// EgressToOwnNode says whether the egress policies of a pod hold for
	// connections to the node that the pod runs on: Enforce (default) or Allow.
	EgressToOwnNode EgressToOwnNode `json:"egressToOwnNode,omitempty"`
}

// EgressToOwnNode is a way to treat connections of pods to their own node.
type EgressToOwnNode string

// The ways to treat connections of pods to their own node.
const (
	EnforceEgressToOwnNode EgressToOwnNode = "Enforce" // as those to any other address
	AllowEgressToOwnNode   EgressToOwnNode = "Allow"   // no egress policy keeps a pod from its node
)

// VXLANConfiguration holds the cluster-wide settings of the vxlan back end.
type VXLANConfiguration struct {
	VNI  int `json:"vni,omitempty"`  // default 1, as flannel's
	Port int `json:"port,omitempty"` // UDP, default 8472, as flannel's
}

// DeepCopyObject implements runtime.Object.
func (f *FabricConfiguration) DeepCopyObject() runtime.Object {
	out := *f
	f.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.Preference = append([]string(nil), f.Spec.Preference...)
	if f.Spec.VXLAN != nil {
		v := *f.Spec.VXLAN
		out.Spec.VXLAN = &v
	}
	return &out
}
