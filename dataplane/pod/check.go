package pod

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check says what of an attachment is missing or wrong; nil if nothing is. Each
// joined error is one finding. A zero MTU and a zero PodMAC are not compared, nor
// is the way out of a family whose default route is not among routes.
func Check(a Attachment, routes []netip.Prefix) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer host.Close()
	ns, err := openNS(a.NetNS)
	if err != nil {
		return err
	}
	defer ns.close()
	inPod, err := ns.handle()
	if err != nil {
		return err
	}
	defer inPod.Close()

	c := &check{Attachment: a, routes: routes}
	hostLink := c.find(host, a.HostInterface, "on the host")
	podLink := c.find(inPod, a.PodInterface, "in the pod")
	if hostLink != nil {
		c.link(hostLink, "host interface "+a.HostInterface)
		if mac := hostLink.Attrs().HardwareAddr.String(); mac != plan.PodGatewayMAC {
			c.add("host interface %s has the Ethernet address %s, not %s", a.HostInterface, mac, plan.PodGatewayMAC)
		}
	}
	if podLink != nil {
		c.link(podLink, "interface "+a.PodInterface+" in the pod")
		if mac := podLink.Attrs().HardwareAddr.String(); a.PodMAC != (plan.MAC{}) && mac != a.PodMAC.String() {
			c.add("interface %s in the pod has the Ethernet address %s, not %s", a.PodInterface, mac, a.PodMAC)
		}
		c.inPod(inPod, podLink)
	}
	if hostLink != nil && podLink != nil && hostLink.Attrs().ParentIndex != podLink.Attrs().Index {
		c.add("%s and the pod's %s are not the two ends of one pair", a.HostInterface, a.PodInterface)
	}
	return errors.Join(c.findings...)
}

type check struct {
	Attachment
	routes   []netip.Prefix
	findings []error
}

func (c *check) add(format string, args ...any) {
	c.findings = append(c.findings, fmt.Errorf(format, args...))
}

// failed notes that something could not be read.
func (c *check) failed(what string, err error) bool {
	if err == nil || errors.Is(err, netlink.ErrDumpInterrupted) {
		return false
	}
	c.add("read %s in the pod: %w", what, err)
	return true
}

func (c *check) find(h *netlink.Handle, name, where string) netlink.Link {
	l, err := h.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	switch {
	case errors.As(err, &notFound):
		c.add("interface %s is missing %s", name, where)
		return nil
	case err != nil:
		c.add("find interface %s %s: %w", name, where, err)
		return nil
	case l.Type() != plan.LinkVeth:
		c.add("interface %s %s is a %s, not a veth", name, where, l.Type())
	}
	return l
}

func (c *check) link(l netlink.Link, what string) {
	if c.MTU != 0 && l.Attrs().MTU != c.MTU {
		c.add("%s has MTU %d, not %d", what, l.Attrs().MTU, c.MTU)
	}
	if l.Attrs().RawFlags&unix.IFF_UP == 0 {
		c.add("%s is down", what)
	}
}

func (c *check) inPod(h *netlink.Handle, l netlink.Link) {
	addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
	if !c.failed("addresses", err) {
		for _, want := range c.Addresses {
			if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == want.String() }) {
				c.add("address %s is missing on %s in the pod", want.Addr(), c.PodInterface)
			}
		}
	}
	for _, next := range c.families() {
		isDefault := func(p netip.Prefix) bool { return p.Bits() == 0 && p.Addr().Is4() == next.Is4() }
		if !slices.ContainsFunc(c.routes, isDefault) {
			continue
		}
		c.family(h, l.Attrs().Index, next)
	}
}

func (c *check) family(h *netlink.Handle, index int, next netip.Addr) {
	family := netlink.FAMILY_V4
	if next.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := h.RouteList(nil, family)
	if !c.failed("routes", err) {
		for _, want := range podRoutes(index, next) {
			if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
				return r.LinkIndex == index && r.Dst.String() == want.Dst.String() && r.Gw.Equal(want.Gw)
			}) {
				c.add("route %s is missing in the pod", want.Dst)
			}
		}
	}
	neighbours, err := h.NeighList(index, family)
	if !c.failed("neighbours", err) && !slices.ContainsFunc(neighbours, func(n netlink.Neigh) bool {
		return n.State == netlink.NUD_PERMANENT && n.IP.Equal(next.AsSlice()) && n.HardwareAddr.String() == plan.PodGatewayMAC
	}) {
		c.add("permanent neighbour %s (%s) is missing in the pod", next, plan.PodGatewayMAC)
	}
}
