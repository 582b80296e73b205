package route

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/plan"
)

// InUse lists the addresses within the prefixes that something other than Twill
// uses in the network namespace of the calling thread, by what uses them:
// addresses of interfaces, routes to single addresses, and neighbours that have
// answered or are permanent. Pods of an earlier network show up so. What uses them
// is for people: "interface cni0".
func InUse(within []netip.Prefix) (map[string][]netip.Addr, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer h.Close()
	u := inUse{within: within, links: map[int]string{}, found: map[string][]netip.Addr{}}
	for _, read := range []func(*netlink.Handle) error{u.readLinks, u.readAddresses, u.readRoutes, u.readNeighbours} {
		if err := unbroken(func() error { return read(h) }); err != nil {
			return nil, fmt.Errorf("read which addresses are in use: %w", err)
		}
	}
	for by, addrs := range u.found {
		slices.SortFunc(addrs, netip.Addr.Compare)
		u.found[by] = slices.Compact(addrs)
	}
	return u.found, nil
}

type inUse struct {
	within []netip.Prefix
	links  map[int]string // names by index
	found  map[string][]netip.Addr
}

func (u *inUse) add(what string, index int, a netip.Addr) {
	link := u.links[index]
	if ours(link) {
		return
	}
	for _, p := range u.within {
		if p.Contains(a) {
			by := what + " " + link
			u.found[by] = append(u.found[by], a)
			return
		}
	}
}

func (u *inUse) readLinks(h *netlink.Handle) error {
	links, err := h.LinkList()
	for _, l := range links {
		u.links[l.Attrs().Index] = l.Attrs().Name
	}
	return err
}

func (u *inUse) readAddresses(h *netlink.Handle) error {
	all, err := h.AddrList(nil, netlink.FAMILY_ALL)
	for _, a := range all {
		u.add("interface", a.LinkIndex, prefixOf(a.IPNet).Addr())
	}
	return err
}

func (u *inUse) readRoutes(h *netlink.Handle) error {
	// Any table but the local one, which repeats the addresses of interfaces.
	return h.RouteListFilteredIter(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		if r.Dst == nil || r.Table == unix.RT_TABLE_LOCAL || r.Protocol == plan.RouteProtocol || r.Type != unix.RTN_UNICAST || r.LinkIndex == 0 {
			return true
		}
		if p := prefixOf(r.Dst); p.IsSingleIP() {
			u.add("a route on", r.LinkIndex, p.Addr())
		}
		return true
	})
}

func (u *inUse) readNeighbours(h *netlink.Handle) error {
	all, err := h.NeighList(0, netlink.FAMILY_ALL)
	const answered = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT
	for _, n := range all {
		if addr, ok := netip.AddrFromSlice(n.IP); ok && n.State&answered != 0 {
			u.add("a neighbour on", n.LinkIndex, addr.Unmap())
		}
	}
	return err
}
