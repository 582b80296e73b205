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
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// loopback is the index of lo in every network namespace (LOOPBACK_IFINDEX).
const loopback = 1

// Attach gives a pod its interface. The host end is made in the network
// namespace of the calling thread and is left down. After an error there is no
// interface.
func Attach(a Attachment) error {
	err := a.validate()
	if err == nil {
		err = attach(a)
	}
	if err != nil {
		return fmt.Errorf("attach pod: %w", err)
	}
	return nil
}

func attach(a Attachment) error {
	ns, err := openNS(a.NetNS)
	if err != nil {
		return err
	}
	defer ns.close()
	if own, err := ns.isOwn(); err != nil {
		return fmt.Errorf("compare the pod's network namespace with the node's: %w", err)
	} else if own {
		return fmt.Errorf("%s is the node's own network namespace: a pod on the host's network is not attached", a.NetNS)
	}
	host, err := openSocket()
	if err != nil {
		return err
	}
	defer host.close()
	// A socket stays in the namespace where it was opened, so that all can be
	// done in one go on a thread in the pod.
	return ns.do(func() error {
		inPod, err := openSocket()
		if err != nil {
			return err
		}
		defer inPod.close()
		if err := create(host, inPod, ns, a); err != nil {
			return err
		}
		err = describe(host, a)
		if err == nil {
			err = setUp(inPod, a)
		}
		if err == nil {
			err = awaitIPv6(inPod, a)
		}
		if err != nil {
			// With one end goes the other and all that was set up on it.
			_, undo := host.do(deleteLink(a.HostInterface))
			return errors.Join(err, undo)
		}
		return nil
	})
}

// create makes both ends in one request, the pod's end in the pod at once, so
// that it never shows up on the host, where udev would rename it.
func create(host, inPod *socket, ns podNS, a Attachment) error {
	peer := nl.NewRtAttr(nl.VETH_INFO_PEER, nl.NewIfInfomsg(unix.AF_UNSPEC).Serialize())
	for _, attribute := range end(a.PodInterface, a.MTU, a.PodMAC[:]) {
		peer.AddChild(attribute)
	}
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.file.Fd())))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(plan.LinkVeth))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddChild(peer)

	r := newRequest(fmt.Sprintf("create veth pair %s, %s", a.HostInterface, a.PodInterface),
		unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nl.NewIfInfomsg(unix.AF_UNSPEC))
	for _, attribute := range end(a.HostInterface, a.MTU, gatewayMAC()) {
		r.AddData(attribute)
	}
	r.AddData(info)
	_, err := host.do(r)
	if errors.Is(err, unix.EEXIST) {
		if _, err := inPod.do(getLink(a.PodInterface)); err == nil {
			return fmt.Errorf("the pod has an interface %s already", a.PodInterface)
		}
		return fmt.Errorf("host interface %s exists already: the pod is attached, or its last detachment is not finished", a.HostInterface)
	}
	return err
}

// end describes an end of a pair.
func end(name string, mtu int, mac []byte) []*nl.RtAttr {
	return []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)),
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))),
		nl.NewRtAttr(unix.IFLA_ADDRESS, mac),
		// A pair uses one queue unless asked for more. Left to itself the kernel
		// makes one for each processor, and then takes the others back.
		nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1)),
		nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1)),
	}
}

// describe notes on the host end whose it is. The kernel ignores an alias in
// the request that creates a device.
func describe(host *socket, a Attachment) error {
	_, err := host.do(newRequest("note the pod on "+a.HostInterface, unix.RTM_SETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		named(a.HostInterface), nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(a.alias()))))
	return err
}

// setUp makes the pod's side complete.
func setUp(inPod *socket, a Attachment) error {
	families := a.families()
	if err := setIPv6(a.PodInterface, families[len(families)-1].Is6()); err != nil {
		return err
	}
	link, err := inPod.do(getLink(a.PodInterface))
	if err != nil {
		return err
	}
	index := int(nl.DeserializeIfInfomsg(link).Index)
	requests := []request{raise("lo", loopback), raise(a.PodInterface, index)}
	for _, p := range a.Addresses {
		requests = append(requests, addAddress(p, index))
	}
	for _, next := range families {
		requests = append(requests, addNeighbour(next, index))
		for _, r := range podRoutes(index, next) {
			requests = append(requests, addRoute(r))
		}
	}
	_, err = inPod.do(requests...)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the pod has it already: %w", err)
	}
	return err
}

// readyWithin bounds awaitIPv6: the kernel needs some 100 µs, or as long as
// others hold its RTNL lock.
const readyWithin = 5 * time.Second

// awaitIPv6 returns when the pod's IPv6 addresses take packets. Even without
// duplicate address detection the kernel makes their local routes in the
// background, and until then it drops what is sent to them.
func awaitIPv6(inPod *socket, a Attachment) error {
	for _, p := range a.Addresses {
		if p.Addr().Is4() {
			continue
		}
		for deadline := time.Now().Add(readyWithin); ; time.Sleep(50 * time.Microsecond) {
			route, err := inPod.do(getRoute(p.Addr()))
			if err == nil && nl.DeserializeRtMsg(route).Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("address %s is not ready after %s: is the kernel's RTNL lock held by something slow?", p.Addr(), readyWithin)
			}
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
	host, err := openSocket()
	if err != nil {
		return fmt.Errorf("detach pod: %w", err)
	}
	defer host.close()
	if _, err := host.do(deleteLink(hostInterface)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("detach pod: %w", err)
	}
	return nil
}
