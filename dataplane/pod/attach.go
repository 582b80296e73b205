package pod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loopback is the index of lo in every network namespace (LOOPBACK_IFINDEX).
const loopback = 1

// Attach gives a pod its interface and returns the Ethernet address of the
// pod's end: a.PodMAC, or one that the kernel chose. The host end is made in
// the network namespace of the calling thread and is left down. After an error
// there is no interface.
func Attach(a Attachment) (podMAC plan.MAC, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("attach pod: %w", err)
		}
	}()
	if err := a.validate(); err != nil {
		return plan.MAC{}, err
	}
	ns, err := openNS(a.NetNS)
	if err != nil {
		return plan.MAC{}, err
	}
	defer ns.close()
	if own, err := ns.isOwn(); err != nil {
		return plan.MAC{}, fmt.Errorf("compare the pod's network namespace with the node's: %w", err)
	} else if own {
		return plan.MAC{}, fmt.Errorf("%s is the node's own network namespace: a pod on the host's network is not attached", a.NetNS)
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return plan.MAC{}, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer host.Close()

	veth, err := create(host, ns, a)
	if err != nil {
		return plan.MAC{}, err
	}
	podMAC, err = setUp(ns, a)
	if err == nil {
		err = describe(host, veth, a)
	}
	if err == nil {
		err = awaitIPv6(ns, a)
	}
	if err != nil {
		// With one end goes the other and all that was set up on it.
		if undo := host.LinkDel(veth); undo != nil {
			err = errors.Join(err, fmt.Errorf("delete %s again: %w", a.HostInterface, undo))
		}
		return plan.MAC{}, err
	}
	return podMAC, nil
}

// create makes both ends in one request, the pod's end in the pod at once, so
// that it never shows up on the host, where udev would rename it.
func create(host *netlink.Handle, ns *podNS, a Attachment) (*netlink.Veth, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = a.HostInterface, a.MTU, gatewayMAC()
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = a.PodInterface, netlink.NsFd(ns.file.Fd())
	if a.PodMAC != nil {
		veth.PeerHardwareAddr = a.PodMAC[:]
	}
	err := host.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		if _, inPod := ns.handle.LinkByName(a.PodInterface); inPod == nil {
			return nil, fmt.Errorf("the pod has an interface %s already", a.PodInterface)
		}
		return nil, fmt.Errorf("host interface %s exists already: the pod is attached, or its last detachment is not finished", a.HostInterface)
	}
	if err != nil {
		return nil, fmt.Errorf("create veth pair %s, %s: %w", a.HostInterface, a.PodInterface, err)
	}
	return veth, nil
}

// describe notes on the host end whose it is. The kernel ignores an alias in
// the request that creates a device.
func describe(host *netlink.Handle, veth *netlink.Veth, a Attachment) error {
	if err := host.LinkSetAlias(veth, a.alias()); err != nil {
		return fmt.Errorf("note the pod on %s: %w", a.HostInterface, err)
	}
	return nil
}

// setUp makes the pod's side complete.
func setUp(ns *podNS, a Attachment) (mac plan.MAC, err error) {
	link, err := ns.handle.LinkByName(a.PodInterface)
	if err != nil {
		return mac, fmt.Errorf("find %s in the pod: %w", a.PodInterface, err)
	}
	if mac, err = macOf(link); err != nil {
		return mac, err
	}
	families := a.families()
	if err := ns.setIPv6(a.PodInterface, families[len(families)-1].Is6()); err != nil {
		return mac, err
	}
	if err := ns.handle.LinkSetUp(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: loopback}}); err != nil {
		return mac, fmt.Errorf("bring lo up in the pod: %w", err)
	}
	if err := ns.handle.LinkSetUp(link); err != nil {
		return mac, fmt.Errorf("bring %s up in the pod: %w", a.PodInterface, err)
	}
	for _, p := range a.Addresses {
		addr := &netlink.Addr{IPNet: ipNet(p), LinkIndex: link.Attrs().Index}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // IPAM vouches for it; detection would take a second
		}
		if err := ns.handle.AddrAdd(nil, addr); err != nil {
			return mac, fmt.Errorf("add address %s in the pod: %w", p.Addr(), err)
		}
	}
	for _, next := range families {
		if err := setUpFamily(ns, link.Attrs().Index, next); err != nil {
			return mac, err
		}
	}
	return mac, nil
}

// readyWithin bounds awaitIPv6: the kernel needs some 100 µs, or as long as
// others hold its RTNL lock.
const readyWithin = 5 * time.Second

// awaitIPv6 returns when the pod's IPv6 addresses take packets. Even without
// duplicate address detection the kernel makes their local routes in the
// background, and until then it drops what is sent to them.
func awaitIPv6(ns *podNS, a Attachment) error {
	for _, p := range a.Addresses {
		if p.Addr().Is4() {
			continue
		}
		for deadline := time.Now().Add(readyWithin); ; time.Sleep(50 * time.Microsecond) {
			routes, err := ns.handle.RouteGet(p.Addr().AsSlice())
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("address %s is not ready after %s: is the kernel's RTNL lock held by something slow?", p.Addr(), readyWithin)
			}
		}
	}
	return nil
}

func macOf(link netlink.Link) (mac plan.MAC, err error) {
	hw := link.Attrs().HardwareAddr
	if len(hw) != len(mac) {
		return mac, fmt.Errorf("interface %s has no Ethernet address", link.Attrs().Name)
	}
	return plan.MAC(hw), nil
}

// setUpFamily makes the next hop of one family known, and the default route
// through it.
func setUpFamily(ns *podNS, index int, next netip.Addr) error {
	neighbour := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: next.AsSlice(), HardwareAddr: gatewayMAC()}
	if err := ns.handle.NeighSet(neighbour); err != nil {
		return fmt.Errorf("add neighbour %s in the pod: %w", next, err)
	}
	for _, r := range podRoutes(index, next) {
		if err := ns.handle.RouteAdd(r); err != nil {
			if errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("the pod has a route to %s already", r.Dst)
			}
			return fmt.Errorf("add route %s in the pod: %w", r.Dst, err)
		}
	}
	return nil
}

// podRoutes are the routes of one family in the pod: the next hop on the link,
// and everything through it.
func podRoutes(index int, next netip.Addr) []*netlink.Route {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	scope := netlink.SCOPE_LINK
	if next.Is6() {
		all, scope = netip.PrefixFrom(netip.IPv6Unspecified(), 0), netlink.SCOPE_UNIVERSE
	}
	return []*netlink.Route{
		{LinkIndex: index, Dst: ipNet(netip.PrefixFrom(next, next.BitLen())), Scope: scope},
		{LinkIndex: index, Dst: ipNet(all), Gw: next.AsSlice()},
	}
}

func gatewayMAC() net.HardwareAddr {
	mac, err := plan.ParseMAC(plan.PodGatewayMAC)
	if err != nil {
		panic(err) // a constant
	}
	return mac[:]
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Detach deletes a pod's pair, wherever the pod's end is. That it is gone
// already is no error. It takes the kernel near 22 ms (a grace period of RCU):
// callers in a hurry do it in the background.
func Detach(hostInterface string) error {
	if !strings.HasPrefix(hostInterface, plan.VethPrefix) {
		return fmt.Errorf("detach pod: %q is not a pod's host interface, whose name starts with %s", hostInterface, plan.VethPrefix)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("detach pod: open a netlink socket: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(hostInterface)
	if err == nil {
		err = h.LinkDel(link)
	}
	var notFound netlink.LinkNotFoundError
	if err == nil || errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("detach pod: delete %s: %w", hostInterface, err)
}
