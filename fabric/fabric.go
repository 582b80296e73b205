// Package fabric decides how a node reaches the pods of each other node: one
// file a back end, and the choice between them. A node publishes what it can
// receive; the sender takes the first back end in the cluster's order of
// preference that the peer receives and that can reach it.
//
// It never touches the kernel: it says which device, next hop and tunnel end to
// use, and plan turns that into routes.
package fabric

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/twill-net/twill/api"
)

// Underlay is a node's own connection to the network that joins the nodes.
type Underlay struct {
	Link     string         `json:"link"`
	Prefixes []netip.Prefix `json:"prefixes"` // the node's addresses with the length of their networks, at most one of a family
	MTU      int            `json:"mtu"`
}

// Addr returns the node's address of a family, if it has one.
func (u Underlay) Addr(v6 bool) (netip.Addr, bool) {
	for _, p := range u.Prefixes {
		if p.Addr().Is6() == v6 {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// Equal says whether two are the same.
func (u Underlay) Equal(v Underlay) bool {
	return u.Link == v.Link && u.MTU == v.MTU && slices.Equal(u.Prefixes, v.Prefixes)
}

// Self is the node whose plan is made.
type Self struct {
	Name     string
	Underlay Underlay
}

// Peer is another node.
type Peer struct {
	Name     string
	Addrs    []netip.Addr // at most one of a family
	Receives api.Receives
	// Claim and Created decide which of several peers has an address.
	Claim, Created time.Time
}

// Precedes says which of two peers that have one address gets its packets: the
// one with the later claim, else the one whose Node is older, else by name.
func (p Peer) Precedes(other Peer) bool {
	if c := p.Claim.Compare(other.Claim); c != 0 {
		return c > 0
	}
	if c := p.Created.Compare(other.Created); c != 0 {
		return c < 0
	}
	return p.Name < other.Name
}

// Addr returns the peer's address of a family, if it has one.
func (p Peer) Addr(v6 bool) (netip.Addr, bool) {
	for _, a := range p.Addrs {
		if a.Is6() == v6 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Config is the cluster's fabric configuration with defaults applied.
type Config struct {
	Preference []string
	VNI        int
	Port       int
	// EgressToOwnNode is Enforce or Allow.
	EgressToOwnNode api.EgressToOwnNode
}

// DefaultPreference is the order of preference where none is configured: it
// works wherever nodes exchange UDP.
var DefaultPreference = api.Backends()

// ConfigFrom applies defaults; nil means all defaults.
func ConfigFrom(f *api.FabricConfiguration) Config {
	c := Config{Preference: DefaultPreference, VNI: api.DefaultVNI, Port: api.DefaultVXLANPort, EgressToOwnNode: api.EnforceEgressToOwnNode}
	if f == nil {
		return c
	}
	if len(f.Spec.Preference) > 0 {
		c.Preference = f.Spec.Preference
	}
	if w := f.Spec.EgressToOwnNode; w != "" {
		c.EgressToOwnNode = w
	}
	if v := f.Spec.VXLAN; v != nil {
		if v.VNI != 0 {
			c.VNI = v.VNI
		}
		if v.Port != 0 {
			c.Port = v.Port
		}
	}
	return c
}

// MAC is an Ethernet address; plan has the same type under its own name.
type MAC [6]byte

// String is the usual notation.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Device is a tunnel device that a back end needs.
type Device struct {
	Name     string
	MTU      int
	MAC      MAC
	VNI      int
	Port     int
	Local    netip.Addr
	Underlay string
}

// Path is the way to a peer's pods of one family.
type Path struct {
	Backend string
	Link    string
	NextHop netip.Addr
	OnLink  bool // no address of ours says that the next hop is on the link

	// For tunnels: the next hop's Ethernet address, and the node behind it.
	MAC    MAC
	Remote netip.Addr
}

// Tunnel says whether the path needs a neighbour and a forwarding entry.
func (p Path) Tunnel() bool { return p.Remote.IsValid() }

// Backend is one way to carry packets between nodes.
type Backend interface {
	// Name is what users write.
	Name() string
	// Encapsulates says whether packets are wrapped in others.
	Encapsulates() bool
	// Overhead is the number of bytes that it takes from the underlay's MTU.
	Overhead(self Self) int
	// Device is the device that the node needs to send and to receive, if any.
	Device(self Self, cfg Config) (Device, bool)
	// Receive is what the node publishes for senders; the error says why it
	// can't receive.
	Receive(self Self, cfg Config) (api.ReceiveParameters, error)
	// Path is the way to the peer's pods of a family; the error says why there
	// is none.
	Path(self Self, cfg Config, peer Peer, v6 bool) (Path, error)
}

// Backends lists every back end.
func Backends() []Backend { return []Backend{vxlan{}, hostGW{}} }

func lookup(name string) (Backend, bool) {
	for _, b := range Backends() {
		if b.Name() == name {
			return b, true
		}
	}
	return nil, false
}

// Devices lists the devices that the node needs. A node keeps receiving by
// every back end it can, whatever the preference, so that senders can change at
// any moment without losing a packet.
func Devices(self Self, cfg Config) []Device {
	var out []Device
	for _, b := range Backends() {
		if d, ok := b.Device(self, cfg); ok {
			out = append(out, d)
		}
	}
	return out
}

// Receives is what the node publishes.
func Receives(self Self, cfg Config) api.Receives {
	r := api.Receives{}
	for _, b := range Backends() {
		if p, err := b.Receive(self, cfg); err == nil {
			r[b.Name()] = p
		}
	}
	return r
}

// PodMTU is the MTU of pods: what is left of the underlay's after the largest
// overhead among the back ends that may carry the traffic of pools with these
// modes; the cluster's preference counts for a pool without one. 0: there is no
// underlay.
func PodMTU(self Self, cfg Config, modes []api.EncapsulationMode) int {
	if len(modes) == 0 {
		modes = []api.EncapsulationMode{""}
	}
	overhead := 0
	for _, mode := range modes {
		for _, name := range order(cfg.Preference, mode) {
			if b, ok := lookup(name); ok {
				overhead = max(overhead, b.Overhead(self))
			}
		}
	}
	return max(0, self.Underlay.MTU-overhead)
}

// Choose returns the path to a peer's pods of a family, for a pool with the
// given encapsulation mode. The error lists why each back end was passed over.
func Choose(self Self, cfg Config, peer Peer, mode api.EncapsulationMode, v6 bool) (Path, error) {
	var reasons []string
	for _, name := range order(cfg.Preference, mode) {
		b, ok := lookup(name)
		if !ok {
			reasons = append(reasons, name+": no such back end")
			continue
		}
		if _, ok := peer.Receives[name]; !ok {
			reasons = append(reasons, name+": the peer does not receive it")
			continue
		}
		path, err := b.Path(self, cfg, peer, v6)
		if err == nil {
			return path, nil
		}
		reasons = append(reasons, name+": "+err.Error())
	}
	if len(reasons) == 0 {
		return Path{}, fmt.Errorf("no back end is allowed: pool mode %s, preference %s", mode, strings.Join(cfg.Preference, ", "))
	}
	return Path{}, errors.New(strings.Join(reasons, "; "))
}

// order is the order of preference as far as a pool's mode allows it.
func order(preference []string, mode api.EncapsulationMode) []string {
	switch mode {
	case api.EncapAlways:
		return []string{vxlan{}.Name()}
	case api.EncapCrossSubnet:
		return []string{hostGW{}.Name(), vxlan{}.Name()}
	case api.EncapNever:
		return slices.DeleteFunc(slices.Clone(preference), func(name string) bool {
			b, ok := lookup(name)
			return ok && b.Encapsulates()
		})
	}
	return preference
}

// tunnelMAC derives the address of a node's tunnel device from its name: locally
// administered, unicast, and the same when the device has to be made anew, so
// that peers' entries stay true.
func tunnelMAC(node string) MAC {
	sum := sha256.Sum256([]byte("twill tunnel " + node))
	m := MAC(sum[:6])
	m[0] = m[0]&^0x01 | 0x02
	return m
}
