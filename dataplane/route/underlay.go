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

// DetectUnderlay finds the device that joins this node with the others: the
// one that holds nodeIPs, or, if there are none, the one of the default route
// with the lowest metric, with its first global address of each family. It
// looks at the network namespace of the calling thread.
func DetectUnderlay(nodeIPs []netip.Addr) (fabric.Underlay, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fabric.Underlay{}, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer h.Close()
	var all []netlink.Addr
	err = unbroken(func() error { all, err = h.AddrList(nil, netlink.FAMILY_ALL); return err })
	if err != nil {
		return fabric.Underlay{}, fmt.Errorf("read addresses: %w", err)
	}
	var index int
	var prefixes []netip.Prefix
	if len(nodeIPs) > 0 {
		index, prefixes, err = holderOf(nodeIPs, all)
	} else {
		index, prefixes, err = defaultDevice(h, all)
	}
	if err != nil {
		return fabric.Underlay{}, fmt.Errorf("find the node's network device: %w", err)
	}
	l, err := h.LinkByIndex(index)
	if err != nil {
		return fabric.Underlay{}, fmt.Errorf("find the node's network device: %w", err)
	}
	if l.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 {
		return fabric.Underlay{}, fmt.Errorf("the node address %s is on the loopback device, which reaches no other node: give an address of a network device", prefixes[0].Addr())
	}
	return fabric.Underlay{Link: l.Attrs().Name, Prefixes: prefixes, MTU: l.Attrs().MTU}, nil
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

func holderOf(nodeIPs []netip.Addr, all []netlink.Addr) (index int, prefixes []netip.Prefix, err error) {
	for _, ip := range nodeIPs {
		i := slices.IndexFunc(all, func(a netlink.Addr) bool { return prefixOf(a.IPNet).Addr() == ip.Unmap() })
		if i < 0 {
			return 0, nil, fmt.Errorf("%w %s", ErrNoAddress, ip)
		}
		if index != 0 && index != all[i].LinkIndex {
			return 0, nil, fmt.Errorf("the node addresses %s and %s are on different devices", nodeIPs[0], ip)
		}
		index = all[i].LinkIndex
		prefixes = append(prefixes, prefixOf(all[i].IPNet))
	}
	return index, oneOfEach(prefixes), nil
}

// defaultDevice prefers the IPv4 default route; a device that has only an IPv6
// one is taken if there is no other.
func defaultDevice(h *netlink.Handle, all []netlink.Addr) (index int, prefixes []netip.Prefix, err error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if index, err = defaultRoute(h, family); err != nil {
			return 0, nil, err
		}
		if index != 0 {
			break
		}
	}
	if index == 0 {
		return 0, nil, errors.New("there is no default route: say the node's address")
	}
	for _, a := range all {
		p := prefixOf(a.IPNet)
		temporary := a.Flags&(unix.IFA_F_SECONDARY|unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE) != 0
		if a.LinkIndex == index && a.Scope == unix.RT_SCOPE_UNIVERSE && p.Addr().IsGlobalUnicast() && !temporary {
			prefixes = append(prefixes, p)
		}
	}
	if len(prefixes) == 0 {
		return 0, nil, errors.New("the device of the default route has no global address: say the node's address")
	}
	return index, oneOfEach(prefixes), nil
}

func defaultRoute(h *netlink.Handle, family int) (index int, err error) {
	var best *netlink.Route
	err = unbroken(func() error {
		best = nil
		// A default route is listed with the destination 0.0.0.0/0 or ::/0.
		return h.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			ones, _ := r.Dst.Mask.Size()
			if ones == 0 && r.Type == unix.RTN_UNICAST && (best == nil || r.Priority < best.Priority) {
				best = &r
			}
			return true
		})
	})
	if err != nil {
		return 0, fmt.Errorf("read routes: %w", err)
	}
	switch {
	case best == nil:
		return 0, nil
	case best.LinkIndex == 0 && len(best.MultiPath) > 0:
		return best.MultiPath[0].LinkIndex, nil
	}
	return best.LinkIndex, nil
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
