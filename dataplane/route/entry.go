package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gone says whether a deletion failed only because there was nothing to delete.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.EADDRNOTAVAIL)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (a *pass) address(k plan.AddressKey) (*netlink.Addr, error) {
	index, err := a.index(k.Link)
	if err != nil {
		return nil, err
	}
	addr := &netlink.Addr{IPNet: ipNet(k.Prefix), LinkIndex: index}
	if k.Prefix.Addr().Is6() {
		// The planner vouches for it: without this it can't be used for the
		// second that duplicate address detection takes (RFC 4862 §5.4).
		addr.Flags = unix.IFA_F_NODAD
	} else if k.Prefix.Addr().IsLinkLocalUnicast() {
		// Else the kernel might offer it as a source to the whole world; IPv6
		// knows by itself.
		addr.Scope = unix.RT_SCOPE_LINK
	}
	return addr, nil
}

func (a *pass) putAddress(k plan.AddressKey, _ struct{}) (bool, error) {
	addr, err := a.address(k)
	if err != nil {
		return false, err
	}
	if err := a.handle.AddrReplace(nil, addr); err != nil {
		return false, fmt.Errorf("add address %s to %s: %w", k.Prefix, k.Link, err)
	}
	return true, nil
}

func (a *pass) dropAddress(k plan.AddressKey, _ struct{}) error {
	addr, err := a.address(k)
	if err != nil {
		return nil // it went with its link
	}
	if err := a.handle.AddrDel(nil, addr); err != nil && !gone(err) {
		return fmt.Errorf("delete address %s from %s: %w", k.Prefix, k.Link, err)
	}
	// The kernel silently flushes the IPv4 routes that prefer this source, and
	// all of a device's with its last address.
	a.unread = a.unread || k.Prefix.Addr().Is4() && len(a.routes.on[k.Link]) > 0
	return nil
}

func (a *pass) putNeighbour(k plan.NeighbourKey, mac plan.MAC) (bool, error) {
	index, err := a.index(k.Link)
	if err != nil {
		return false, err
	}
	err = a.handle.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, IP: k.IP.AsSlice(), HardwareAddr: mac[:],
	})
	if err != nil {
		return false, fmt.Errorf("add neighbour %s on %s: %w", k.IP, k.Link, err)
	}
	return true, nil
}

func (a *pass) dropNeighbour(k plan.NeighbourKey, _ plan.MAC) error {
	index, err := a.index(k.Link)
	if err != nil {
		return nil
	}
	err = a.handle.NeighDel(&netlink.Neigh{LinkIndex: index, IP: k.IP.AsSlice()})
	if err != nil && !gone(err) {
		return fmt.Errorf("delete neighbour %s from %s: %w", k.IP, k.Link, err)
	}
	return nil
}

func forwarding(index int, mac plan.MAC, remote netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		IP: remote.AsSlice(), HardwareAddr: mac[:],
	}
}

func (a *pass) putFDB(k plan.FDBKey, remote netip.Addr) (bool, error) {
	index, err := a.index(k.Link)
	if err != nil {
		return false, err
	}
	if err := a.handle.NeighSet(forwarding(index, k.MAC, remote)); err != nil {
		return false, fmt.Errorf("add forwarding entry %s to %s on %s: %w", k.MAC, remote, k.Link, err)
	}
	return true, nil
}

func (a *pass) dropFDB(k plan.FDBKey, remote netip.Addr) error {
	index, err := a.index(k.Link)
	if err != nil {
		return nil
	}
	if err := a.handle.NeighDel(forwarding(index, k.MAC, remote)); err != nil && !gone(err) {
		return fmt.Errorf("delete forwarding entry %s from %s: %w", k.MAC, k.Link, err)
	}
	return nil
}

func (a *pass) kernelRoute(p netip.Prefix, want plan.Route) (*netlink.Route, error) {
	r := &netlink.Route{
		Dst: ipNet(p), Protocol: plan.RouteProtocol, Table: unix.RT_TABLE_MAIN, Priority: int(metricOf(p)),
	}
	if want.Blackhole {
		r.Type = unix.RTN_BLACKHOLE
		return r, nil
	}
	index, err := a.index(want.Link)
	if err != nil {
		return nil, err
	}
	r.LinkIndex, r.Type = index, unix.RTN_UNICAST
	if want.Gateway.IsValid() {
		r.Gw = want.Gateway.AsSlice()
	} else if p.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	if want.OnLink {
		r.Flags = unix.RTNH_F_ONLINK
	}
	if want.Source.IsValid() {
		r.Src = want.Source.AsSlice()
	}
	return r, nil
}

// putRoute adds or changes a route. A change is one message that replaces the
// route in place (both families), so there is no moment without one; but it
// would as well replace a foreign route, so it is used only on a route of ours.
func (a *pass) putRoute(p netip.Prefix, want plan.Route) (bool, error) {
	r, err := a.kernelRoute(p, want)
	if err != nil {
		return false, err
	}
	write := a.handle.RouteReplace
	if _, exists := a.routes.have[p]; !exists {
		write = a.handle.RouteAdd
	}
	err = write(r)
	if errors.Is(err, unix.EINVAL) && want.OnLink && want.Gateway.Is6() {
		err = a.behindHostRoute(r, write)
	}
	if errors.Is(err, unix.EEXIST) {
		return a.takeOver(p, want, r)
	}
	if err != nil {
		return false, fmt.Errorf("add route %s: %w", describe(p, want), a.explain(err, want))
	}
	return true, nil
}

// behindHostRoute writes an IPv6 route while its gateway has a route of its own
// through the same device. The kernel refuses an on-link gateway that another
// device's route covers, as does the very route that is to be changed when a
// peer's prefix moves from a plain next hop into a tunnel.
func (a *pass) behindHostRoute(r *netlink.Route, write func(*netlink.Route) error) error {
	host := &netlink.Route{
		Dst: ipNet(netip.PrefixFrom(netip.AddrFrom16([16]byte(r.Gw)), 128)), LinkIndex: r.LinkIndex,
		Protocol: plan.RouteProtocol, Table: unix.RT_TABLE_MAIN, Priority: metric6,
	}
	if a.handle.RouteAdd(host) != nil {
		return write(r) // somebody has such a route: the first answer stands
	}
	err := write(r)
	if undo := a.handle.RouteDel(host); undo != nil && !gone(undo) {
		a.unread = true // the next Apply finds and removes it
	}
	return err
}

// takeOver handles a prefix that the kernel has a route for, which was not
// known.
func (a *pass) takeOver(p netip.Prefix, want plan.Route, r *netlink.Route) (bool, error) {
	if a.held == nil {
		var err error
		if a.held, err = a.holders(a.plan); err != nil {
			return false, err
		}
	}
	held, ok := a.held[p]
	switch {
	case !ok:
		return false, fmt.Errorf("add route %s: the kernel has it already, but does not show it", describe(p, want))
	case held.protocol != plan.RouteProtocol:
		a.conflicts[p] = struct{}{}
		return false, fmt.Errorf("add route %s: another program has this prefix: %s proto %s; remove that route, or give the prefix up",
			describe(p, want), describe(p, a.planned(held)), netlink.RouteProtocol(held.protocol))
	case a.planned(held) == want:
		return false, nil
	}
	if err := a.handle.RouteReplace(r); err != nil {
		return false, fmt.Errorf("change route %s: %w", describe(p, want), a.explain(err, want))
	}
	return true, nil
}

func (a *pass) dropRoute(p netip.Prefix, have plan.Route) error {
	r := &netlink.Route{
		Dst: ipNet(p), Protocol: plan.RouteProtocol, Table: unix.RT_TABLE_MAIN, Priority: int(metricOf(p)),
		Scope: netlink.SCOPE_NOWHERE, // any
	}
	if err := a.handle.RouteDel(r); err != nil && !gone(err) {
		return fmt.Errorf("delete route %s: %w", describe(p, have), err)
	}
	return nil
}

func describe(p netip.Prefix, r plan.Route) string {
	if r.Blackhole {
		return "blackhole " + p.String()
	}
	s := p.String()
	if r.Gateway.IsValid() {
		s += " via " + r.Gateway.String()
	}
	return s + " dev " + r.Link
}

// explain adds to a refused route what most likely is wrong.
func (a *pass) explain(err error, want plan.Route) error {
	a.waiting[want.Link] = struct{}{} // worth another try when the link changes
	switch {
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("link %s is down: %w", want.Link, err)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Errorf("no address of %s reaches the gateway: %w", want.Link, err)
	case errors.Is(err, unix.EINVAL) && want.Source.IsValid():
		return fmt.Errorf("is the source %s an address of this node? %w", want.Source, err)
	}
	return err
}
