package api

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// GroupCalico is the API group of the kinds that we share with Calico's users.
const GroupCalico = "projectcalico.org"

// EncapsulationMode says when a pool's traffic is encapsulated.
type EncapsulationMode string

// The encapsulation modes of projectcalico.org/v3.
const (
	EncapAlways      EncapsulationMode = "Always"
	EncapCrossSubnet EncapsulationMode = "CrossSubnet"
	EncapNever       EncapsulationMode = "Never"
)

// IPPool is a range of pod addresses.
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPPoolSpec `json:"spec"`
}

// IPPoolSpec is the specification of an IPPool.
type IPPoolSpec struct {
	// CIDR is the range, IPv4 or IPv6, in canonical form.
	CIDR string `json:"cidr"`
	// BlockSize is the prefix length of the blocks that nodes claim. Default
	// 26 for IPv4, 122 for IPv6.
	BlockSize int `json:"blockSize,omitempty"`
	// NATOutgoing masquerades what pods of this pool send to addresses that
	// are neither in a pool nor a node's.
	NATOutgoing bool `json:"natOutgoing,omitempty"`
	// Disabled keeps existing addresses and gives out no new ones.
	Disabled bool `json:"disabled,omitempty"`
	// NodeSelector is a Calico selector expression over node labels; "all()"
	// or empty means every node.
	NodeSelector string `json:"nodeSelector,omitempty"`
	// VXLANMode: Always uses only VXLAN for this pool's traffic between nodes,
	// CrossSubnet uses a direct route to nodes on the same link, Never uses
	// no encapsulation. Empty follows the cluster's order of preference.
	VXLANMode EncapsulationMode `json:"vxlanMode,omitempty"`

	// The rest is in many manifests written for Calico. Each is accepted only
	// with the value that asks for nothing beyond what Twill does; Validate
	// refuses any other.

	// IPIPMode: only Never.
	IPIPMode EncapsulationMode `json:"ipipMode,omitempty"`
	// AllowedUses: only Workload; pools give addresses to pods alone.
	AllowedUses []string `json:"allowedUses,omitempty"`
	// AssignmentMode: only Automatic.
	AssignmentMode string `json:"assignmentMode,omitempty"`
	// NamespaceSelector: only all().
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
	// DisableBGPExport: only false.
	DisableBGPExport bool `json:"disableBGPExport,omitempty"`
}

// IPAMBlock is a part of a pool that one node has claimed. It is created with
// the node's name in it, so that of two nodes that claim the same block only
// one succeeds.
type IPAMBlock struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPAMBlockSpec `json:"spec"`
}

// IPAMBlockSpec is the specification of an IPAMBlock.
type IPAMBlockSpec struct {
	CIDR string `json:"cidr"`
	// Affinity is "host:" and the name of the node that owns the block.
	Affinity string `json:"affinity"`
}

// WorkloadEndpoint is a pod's network interface. Its name is the pod's name;
// its labels are the pod's labels. In Kubernetes mode it is derived from the
// Pod.
type WorkloadEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec WorkloadEndpointSpec `json:"spec"`
}

// WorkloadEndpointSpec is the specification of a WorkloadEndpoint.
type WorkloadEndpointSpec struct {
	Node        string `json:"node"`
	Pod         string `json:"pod,omitempty"`
	ContainerID string `json:"containerID,omitempty"`
	// Endpoint is the interface's name inside the pod.
	Endpoint string `json:"endpoint,omitempty"`
	// InterfaceName is the host end's name.
	InterfaceName string `json:"interfaceName,omitempty"`
	MAC           string `json:"mac,omitempty"`
	// IPNetworks are the pod's addresses as /32 and /128 prefixes.
	IPNetworks []string `json:"ipNetworks,omitempty"`
	// Ports are the pod's named ports and its host ports.
	Ports []WorkloadEndpointPort `json:"ports,omitempty"`
}

// WorkloadEndpointPort is a port of a pod.
type WorkloadEndpointPort struct {
	Name     string          `json:"name,omitempty"`
	Protocol corev1.Protocol `json:"protocol"`
	Port     int32           `json:"port"`
	HostPort int32           `json:"hostPort,omitempty"`
	HostIP   string          `json:"hostIP,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (p *IPPool) DeepCopyObject() runtime.Object {
	out := *p
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.AllowedUses = append([]string(nil), p.Spec.AllowedUses...)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (b *IPAMBlock) DeepCopyObject() runtime.Object {
	out := *b
	b.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (w *WorkloadEndpoint) DeepCopyObject() runtime.Object {
	out := *w
	w.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.IPNetworks = append([]string(nil), w.Spec.IPNetworks...)
	out.Spec.Ports = append([]WorkloadEndpointPort(nil), w.Spec.Ports...)
	return &out
}

// hostAffinity is what an IPAMBlock's affinity starts with.
const hostAffinity = "host:"

// AffinityOf is the affinity of a block that the node owns.
func AffinityOf(node string) string { return hostAffinity + node }

// Owner is the name of the node that owns the block.
func (b *IPAMBlock) Owner() (node string, ok bool) {
	node, ok = strings.CutPrefix(b.Spec.Affinity, hostAffinity)
	return node, ok && node != ""
}
