package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/twill-net/twill/api"
)

// VXLANDevice is the name of the tunnel device.
const VXLANDevice = "twill-vxlan"

// vxlan is the kernel's VXLAN (RFC 7348) without learning: for each peer a
// permanent neighbour, a forwarding entry and on-link routes. On the wire it is
// what flannel sends.
type vxlan struct{}

func (vxlan) Name() string       { return api.BackendVXLAN }
func (vxlan) Encapsulates() bool { return true }

// Overhead is inner Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40.
func (vxlan) Overhead(self Self) int {
	if outer, ok := outerAddr(self.Underlay); ok && outer.Is6() {
		return 70
	}
	return 50
}

// outerAddr is the address that tunnels use: IPv4 where the node has it.
func outerAddr(u Underlay) (netip.Addr, bool) {
	if a, ok := u.Addr(false); ok {
		return a, true
	}
	return u.Addr(true)
}

func (v vxlan) Device(self Self, cfg Config) (Device, bool) {
	local, ok := outerAddr(self.Underlay)
	if !ok {
		return Device{}, false
	}
	return Device{
		Name: VXLANDevice, MTU: self.Underlay.MTU - v.Overhead(self), MAC: tunnelMAC(self.Name),
		VNI: cfg.VNI, Port: cfg.Port, Local: local, Underlay: self.Underlay.Link,
	}, true
}

func (v vxlan) Receive(self Self, cfg Config) (api.ReceiveParameters, error) {
	d, ok := v.Device(self, cfg)
	if !ok {
		return api.ReceiveParameters{}, errors.New("the node has no address")
	}
	return api.ReceiveParameters{MAC: d.MAC.String(), VNI: d.VNI, Port: d.Port}, nil
}

func (vxlan) Path(self Self, cfg Config, peer Peer, v6 bool) (Path, error) {
	local, ok := outerAddr(self.Underlay)
	if !ok {
		return Path{}, errors.New("this node has no address")
	}
	remote, ok := peer.Addr(local.Is6())
	if !ok {
		return Path{}, fmt.Errorf("the peer has no address of the family of %s", local)
	}
	r := peer.Receives[api.BackendVXLAN]
	if r.VNI != cfg.VNI || r.Port != cfg.Port {
		return Path{}, fmt.Errorf("the peer receives VNI %d on port %d, we send VNI %d to port %d", r.VNI, r.Port, cfg.VNI, cfg.Port)
	}
	hw, err := net.ParseMAC(r.MAC)
	if err != nil || len(hw) != 6 {
		return Path{}, fmt.Errorf("the peer publishes %q as its Ethernet address", r.MAC)
	}
	path := Path{Backend: api.BackendVXLAN, Link: VXLANDevice, MAC: MAC(hw), Remote: remote}
	if v6 {
		// A link-local next hop needs no IPv6 address on either node.
		path.NextHop = linkLocal(path.MAC)
		return path, nil
	}
	// The next hop only selects the neighbour entry; with the peer's own
	// address no address has to be set aside for tunnel ends.
	path.NextHop, path.OnLink = remote, true
	if remote.Is6() {
		path.NextHop = ipv4NextHop(path.MAC)
	}
	return path, nil
}

// linkLocal is the IPv6 address that an interface with the MAC has (RFC 4291
// appendix A).
func linkLocal(m MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 0x02, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// ipv4NextHop is a link-local IPv4 address (RFC 3927) for a peer that has only
// an IPv6 address; it is on no wire, only in the neighbour table.
func ipv4NextHop(m MAC) netip.Addr {
	return netip.AddrFrom4([4]byte{169, 254, 128 | m[4]&0x7f, m[5]})
}
