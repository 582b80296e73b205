package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/fabric"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoAddress: no device has a node address that was asked for.
var ErrNoAddress = errors.New("no device has the node address")

// DetectUnderlay is Underlay of the network namespace of the calling thread.
func DetectUnderlay(nodeIPs []netip.Addr) (fabric.Underlay, error) {
	h, err := ReadHost()
	if err != nil {
		return fabric.Underlay{}, err
	}
	return h.Underlay(nodeIPs)
}

// Underlay finds the device that joins this node with the others: the one that
// holds nodeIPs, or, if there are none, the one of the default route with the
// lowest metric, with its first global address of each family. Addresses with a
// network come before single ones, which are virtual addresses for the most part.
func (h Host) Underlay(nodeIPs []netip.Addr) (fabric.Underlay, error) {
	find := h.defaultDevice
	if len(nodeIPs) > 0 {
		find = func() (int, []netip.Prefix, error) { return h.holderOf(nodeIPs) }
	}
	index, prefixes, err := find()
	if err != nil {
		return fabric.Underlay{}, fmt.Errorf("find the node's network device: %w", err)
	}
	l := h.links[index]
	if l.RawFlags&unix.IFF_LOOPBACK != 0 {
		return fabric.Underlay{}, fmt.Errorf("the node address %s is on the loopback device, which reaches no other node: give an address of a network device", prefixes[0].Addr())
	}
	return fabric.Underlay{Link: l.Name, Prefixes: prefixes, MTU: l.MTU}, nil
}

// Keep is Underlay for a node of which neither the configuration nor the kubelet says
// the address. While a device that is up has one of the present addresses, the node
// keeps that device and those of its addresses: a VPN that takes the default route, or
// a new virtual address, changes nothing. Only a missing address is chosen. It returns
// ErrNoAddress if no device that is up has one of them.
func (h Host) Keep(present []netip.Addr) (fabric.Underlay, error) {
	for _, own := range present {
		i := slices.IndexFunc(h.addresses, func(a hostAddress) bool { return a.prefix.Addr() == own })
		if i < 0 {
			continue
		}
		index := h.addresses[i].link
		l := h.links[index]
		if l.RawFlags&unix.IFF_UP == 0 || l.RawFlags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		var prefixes []netip.Prefix
		for _, a := range h.addresses {
			if a.link == index && slices.Contains(present, a.prefix.Addr()) {
				prefixes = append(prefixes, a.prefix)
			}
		}
		prefixes = oneOfEach(append(prefixes, h.globalOf(index)...))
		return fabric.Underlay{Link: l.Name, Prefixes: prefixes, MTU: l.MTU}, nil
	}
	return fabric.Underlay{}, fmt.Errorf("%w %v", ErrNoAddress, present)
}

// globalOf lists the global addresses of a device that last, those with a network
// first.
func (h Host) globalOf(index int) (out []netip.Prefix) {
	for _, a := range h.addresses {
		temporary := a.flags&(unix.IFA_F_SECONDARY|unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE) != 0
		if a.link == index && a.scope == unix.RT_SCOPE_UNIVERSE && a.prefix.Addr().IsGlobalUnicast() && !temporary {
			out = append(out, a.prefix)
		}
	}
	slices.SortStableFunc(out, func(a, b netip.Prefix) int {
		switch {
		case a.IsSingleIP() == b.IsSingleIP():
			return 0
		case b.IsSingleIP():
			return -1
		}
		return 1
	})
	return out
}

// unbroken reads a list again if something changed meanwhile: it may have holes.
func unbroken(read func() error) (err error) {
	for range dumpTries {
		if err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return err
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

func (h Host) holderOf(nodeIPs []netip.Addr) (index int, prefixes []netip.Prefix, err error) {
	for _, ip := range nodeIPs {
		i := slices.IndexFunc(h.addresses, func(a hostAddress) bool { return a.prefix.Addr() == ip.Unmap() })
		if i < 0 {
			return 0, nil, fmt.Errorf("%w %s", ErrNoAddress, ip)
		}
		if index != 0 && index != h.addresses[i].link {
			return 0, nil, fmt.Errorf("the node addresses %s and %s are on different devices", nodeIPs[0], ip)
		}
		index = h.addresses[i].link
		prefixes = append(prefixes, h.addresses[i].prefix)
	}
	return index, oneOfEach(prefixes), nil
}

// defaultDevice prefers the IPv4 default route; a device that has only an IPv6
// one is taken if there is no other.
func (h Host) defaultDevice() (index int, prefixes []netip.Prefix, err error) {
	if len(h.defaults) == 0 {
		return 0, nil, errors.New("there is no default route: say the node's address")
	}
	index = h.defaults[0].link
	prefixes = h.globalOf(index)
	if len(prefixes) == 0 {
		return 0, nil, errors.New("the device of the default route has no global address: say the node's address")
	}
	return index, oneOfEach(prefixes), nil
}

// oneOfEach keeps the first prefix of each family, IPv4 first.
func oneOfEach(prefixes []netip.Prefix) (out []netip.Prefix) {
	for _, v6 := range []bool{false, true} {
		if i := slices.IndexFunc(prefixes, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 }); i >= 0 {
			out = append(out, prefixes[i])
		}
	}
	return out
}
