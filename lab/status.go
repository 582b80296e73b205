package lab

import "net/netip"

// Status is all there is to say about a lab.
type Status struct {
	Name       string        `json:"name"`
	PID        int           `json:"pid"` // the supervisor's
	Etcd       ProcessStatus `json:"etcd"`
	Controller ProcessStatus `json:"controller"`
	Endpoint   string        `json:"endpoint"` // etcd's, from the host
	Nodes      []NodeStatus  `json:"nodes"`
	Pods       []PodStatus   `json:"pods"`
}

// NodeStatus is a node.
type NodeStatus struct {
	Name      string        `json:"name"`
	Addresses []netip.Addr  `json:"addresses"`
	Agent     ProcessStatus `json:"agent"`
}

// PodStatus is a pod.
type PodStatus struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Node      string            `json:"node"`
	Addresses []netip.Addr      `json:"addresses"`
	Labels    map[string]string `json:"labels,omitempty"`
	State     string            `json:"state"` // Running, Completed or Error (how)
	PID       int               `json:"pid,omitempty"`
}

// Address is the pod's first address.
func (p PodStatus) Address() netip.Addr { return p.Addresses[0] }
