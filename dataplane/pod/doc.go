// Package pod attaches pods to the node: a veth pair whose one end is the pod's
// interface and whose other end, the host end, the plan takes over. The pod
// reaches everything through a link-local next hop with a fixed Ethernet
// address that every host end has, so what is set up in the pod is the same on
// every node and never changes.
//
// The host end stays down until the plan brings it up, which is after the pod's
// policy is programmed. The package never adds routes, rules or addresses on
// the host's side, never decides on addresses, and runs no program.
package pod
