package plan

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
)

// Plan is everything that one node must have in its kernel.
type Plan struct {
	Sysctls    *Table[string, string] // path below /proc/sys → value; see ConntrackMax
	Links      *Table[string, Link]   // by device name
	Addresses  *Table[AddressKey, struct{}]
	Neighbours *Table[NeighbourKey, MAC]
	FDB        *Table[FDBKey, netip.Addr] // → the tunnel's remote end
	Routes     *Table[netip.Prefix, Route]

	// The nftables table "inet twill".
	Chains   *Table[string, Chain]
	Sets     *Table[string, Set]
	Elements *Elements

	// UDPFrontends are the balanced UDP ports and all endpoints that can answer,
	// also those that get no new flows. Connection tracking remembers a UDP
	// client's endpoint for as long as the client sends, so entries that lead
	// elsewhere have to be removed.
	UDPFrontends *Table[Frontend, Backends]

	// HealthChecks are the addresses and ports, over HTTP, at which load balancers
	// ask whether this node has endpoints of a Service.
	HealthChecks *Table[netip.AddrPort, HealthCheck]
}

// New returns an empty plan.
func New() *Plan {
	return &Plan{
		Sysctls:    NewTable[string](same[string]),
		Links:      NewTable[string](same[Link]),
		Addresses:  NewTable[AddressKey](same[struct{}]),
		Neighbours: NewTable[NeighbourKey](same[MAC]),
		FDB:        NewTable[FDBKey](same[netip.Addr]),
		Routes:     NewTable[netip.Prefix](same[Route]),
		Chains:     NewTable[string](Chain.Equal),
		Sets:       NewTable[string](Set.Equal),
		Elements:   newElements(),

		UDPFrontends: NewTable[Frontend](Backends.Equal),
		HealthChecks: NewTable[netip.AddrPort](same[HealthCheck]),
	}
}

func same[T comparable](a, b T) bool { return a == b }

// MAC is an Ethernet address.
type MAC = fabric.MAC

// ParseMAC parses a 48-bit Ethernet address.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("%q is not an Ethernet address", s)
	}
	return MAC(hw), nil
}

// Link is a network device. Kind "vxlan" is created when it is missing, and
// made anew when a parameter that can't be changed differs; Kind "veth" is the
// host end of a pod's pair: attaching a pod creates it, the plan sets its MTU
// and brings it up.
type Link struct {
	Kind string
	MTU  int
	MAC  MAC // vxlan; zero: leave alone

	// The rest is for vxlan: learning is off, checksums are on.
	VNI      int
	Port     int
	Local    netip.Addr
	Underlay string // name of the device below
}

// The kinds of links.
const (
	LinkVXLAN = "vxlan"
	LinkVeth  = "veth"
)

// AddressKey is an address on a device of ours.
type AddressKey struct {
	Link   string
	Prefix netip.Prefix
}

// NeighbourKey is a permanent neighbour entry.
type NeighbourKey struct {
	Link string
	IP   netip.Addr
}

// FDBKey is a permanent forwarding entry of a vxlan device.
type FDBKey struct {
	Link string
	MAC  MAC
}

// Route is a route in the main table, with our protocol number. A zero Gateway
// means that the destination is on the link.
type Route struct {
	Link      string
	Gateway   netip.Addr
	OnLink    bool       // the gateway is on the link though no address says so
	Source    netip.Addr // preferred source; zero: the kernel's choice
	Blackhole bool       // then nothing else is set
}

// HealthCheck is what a load balancer is told.
type HealthCheck struct {
	Service        api.Key
	LocalEndpoints int // that are ready, of the address's family
}

// Frontend is an address and port of this node's that is balanced.
type Frontend struct {
	Addr netip.Addr
	Port uint16
}

// Backends are endpoints of a front end, sorted.
type Backends []netip.AddrPort

// Equal says whether two lists have the same backends.
func (b Backends) Equal(o Backends) bool { return slices.Equal(b, o) }
