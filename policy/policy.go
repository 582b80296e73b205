package policy

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
)

// Direction is the side of a connection that a rule guards, seen from the
// selected pod.
type Direction int

// The directions.
const (
	Ingress Direction = iota // connections to the pod
	Egress                   // connections from the pod
)

// String is "ingress" or "egress".
func (d Direction) String() string { return [...]string{"ingress", "egress"}[d] }

// The transport protocols that have ports, by IANA's numbers.
const (
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

// ProtocolOf returns the number of a protocol as Kubernetes names it; empty
// means TCP.
func ProtocolOf(name corev1.Protocol) (uint8, error) {
	switch name {
	case corev1.ProtocolTCP, "":
		return TCP, nil
	case corev1.ProtocolUDP:
		return UDP, nil
	case corev1.ProtocolSCTP:
		return SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q is not one of TCP, UDP, SCTP", name)
}

// ProtocolName is "tcp", "udp", "sctp", or "protocol N" for any other.
func ProtocolName(p uint8) string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", p)
}

// Endpoint is a pod's presence on the pod network. Pods on their host's network
// are no endpoints.
type Endpoint struct {
	Key    api.Key
	Labels map[string]string
	Addrs  []netip.Addr // none yet is fine
	Ports  []NamedPort
	Local  bool // it lives on this node; Evaluate does not care
}

// NamedPort is a port that a pod gives a name to.
type NamedPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

// Policy is a NetworkPolicy in normal form: defaults are filled in, and what
// means the same looks the same. It is immutable.
type Policy struct {
	Key      api.Key
	Pods     *Selector // among the pods of the policy's namespace
	Isolates [2]bool   // by Direction: does the policy restrict it
	Rules    [2][]Rule // by Direction; what they allow adds up
}

// Rule allows the connections that match one of its peers and one of its ports.
type Rule struct {
	Everyone bool   // every peer; Peers is empty
	Peers    []Peer // none and not Everyone: nobody
	AllPorts bool   // every protocol and port; Ports is empty
	Ports    []Port
}

// Peer is whom a rule allows: pods, or a block of addresses.
type Peer struct {
	Pods       *Selector // nil for a block
	Namespaces *Selector // nil: the policy's own namespace
	Block      netip.Prefix
	Except     []netip.Prefix // parts of Block
}

// Port is which ports a rule allows.
type Port struct {
	Protocol    uint8
	Name        string // a named port; First and Last are then 0
	First, Last uint16 // inclusive
}

// String says in words whom the peer stands for.
func (p Peer) String() string {
	if p.Pods == nil {
		text := p.Block.String()
		for i, e := range p.Except {
			text += []string{" except ", ", "}[min(i, 1)] + e.String()
		}
		return text
	}
	pods := p.Pods.String()
	if p.Pods.Everything() {
		pods = "all pods"
	}
	switch {
	case p.Namespaces == nil:
		return pods
	case p.Namespaces.Everything():
		return pods + " in all namespaces"
	default:
		return pods + " in namespaces " + p.Namespaces.String()
	}
}

// String is such as "tcp/80", "udp/8000-8080", "tcp/http" or "tcp".
func (p Port) String() string {
	proto := ProtocolName(p.Protocol)
	switch {
	case p.Name != "":
		return proto + "/" + p.Name
	case p.First == 0 && p.Last == 65535:
		return proto
	case p.First == p.Last:
		return fmt.Sprintf("%s/%d", proto, p.First)
	}
	return fmt.Sprintf("%s/%d-%d", proto, p.First, p.Last)
}

// peers says in words whom the rule allows.
func (r Rule) peers() string {
	if r.Everyone {
		return "anywhere"
	}
	words := make([]string, len(r.Peers))
	for i, p := range r.Peers {
		words[i] = p.String()
	}
	return strings.Join(words, " or ")
}
