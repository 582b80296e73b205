package route

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is what the kernel has of addresses that are not link-local, of the devices
// that have them, and of default routes. Twill's own devices are not in it.
type Host struct {
	// Tunnel is the local address of Twill's tunnel device, which it has kept since an
	// earlier agent; zero: there is no such device.
	Tunnel netip.Addr

	addresses []hostAddress
	links     map[int]netlink.LinkAttrs // by index
	defaults  []defaultRoute            // best metric first, IPv4 before IPv6
}

type hostAddress struct {
	prefix netip.Prefix
	link   int
	scope  int
	flags  int
}

// defaultRoute is one next hop of a default route of the main table.
type defaultRoute struct {
	v6      bool
	metric  int
	link    int
	gateway netip.Addr // zero: the route has none
}

// ReadHost reads the network namespace of the calling thread.
func ReadHost() (Host, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Host{}, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer h.Close()
	out := Host{links: map[int]netlink.LinkAttrs{}}
	if err := out.readDefaults(h); err != nil {
		return Host{}, fmt.Errorf("read routes: %w", err)
	}
	if l, err := h.LinkByName(plan.VXLANLink); err == nil {
		if v, ok := l.(*netlink.Vxlan); ok {
			out.Tunnel, _ = netip.AddrFromSlice(v.SrcAddr)
			out.Tunnel = out.Tunnel.Unmap()
		}
	}
	var all []netlink.Addr
	err = unbroken(func() error { all, err = h.AddrList(nil, netlink.FAMILY_ALL); return err })
	if err != nil {
		return Host{}, fmt.Errorf("read addresses: %w", err)
	}
	for _, a := range all {
		p := prefixOf(a.IPNet)
		if p.Addr().IsLinkLocalUnicast() {
			continue // each pod's device has some
		}
		if _, known := out.links[a.LinkIndex]; !known {
			l, err := h.LinkByIndex(a.LinkIndex)
			if err != nil {
				continue // it has gone since
			}
			out.links[a.LinkIndex] = *l.Attrs()
		}
		if !ours(out.links[a.LinkIndex].Name) {
			out.addresses = append(out.addresses, hostAddress{p, a.LinkIndex, a.Scope, a.Flags})
		}
	}
	return out, nil
}

func (h *Host) readDefaults(from *netlink.Handle) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		var found []defaultRoute
		err := unbroken(func() error {
			found = nil
			return from.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
				// A default route is listed with the destination 0.0.0.0/0 or ::/0.
				if ones, _ := r.Dst.Mask.Size(); ones > 0 || r.Type != unix.RTN_UNICAST {
					return true
				}
				next := func(link int, gateway net.IP) {
					gw, _ := netip.AddrFromSlice(gateway)
					found = append(found, defaultRoute{family == netlink.FAMILY_V6, r.Priority, link, gw.Unmap()})
				}
				if r.LinkIndex != 0 {
					next(r.LinkIndex, r.Gw)
				}
				for _, hop := range r.MultiPath {
					next(hop.LinkIndex, hop.Gw)
				}
				return true
			})
		})
		if err != nil {
			return err
		}
		slices.SortStableFunc(found, func(a, b defaultRoute) int { return a.metric - b.metric })
		h.defaults = append(h.defaults, found...)
	}
	return nil
}

// Reserved lists what the host must reach without the plan's routes: the networks
// of its devices that are up, its default gateways, and its own addresses. The list
// is sorted.
func (h Host) Reserved() []plan.Reserved {
	var out []plan.Reserved
	for _, a := range h.addresses {
		if a.prefix.Addr().IsLoopback() {
			continue
		}
		l := h.links[a.link]
		if !a.prefix.IsSingleIP() && l.RawFlags&unix.IFF_UP != 0 && l.RawFlags&unix.IFF_LOOPBACK == 0 {
			out = append(out, plan.Reserved{Prefix: a.prefix.Masked(), What: "the network of " + l.Name})
		}
		own := netip.PrefixFrom(a.prefix.Addr(), a.prefix.Addr().BitLen())
		out = append(out, plan.Reserved{Prefix: own, What: "an address of " + l.Name, Local: true})
	}
	for _, d := range h.defaults {
		if d.gateway.IsValid() && !d.gateway.IsLinkLocalUnicast() {
			out = append(out, plan.Reserved{Prefix: netip.PrefixFrom(d.gateway, d.gateway.BitLen()), What: "the default gateway"})
		}
	}
	slices.SortFunc(out, func(a, b plan.Reserved) int {
		if c := a.Prefix.Compare(b.Prefix); c != 0 {
			return c
		}
		return strings.Compare(a.What, b.What)
	})
	return slices.Compact(out)
}
