package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/plan"
)

// namespace is a network namespace in which a pod or node lives, wired by hand.
type namespace struct {
	*space.Space
	name string
}

func newNamespace(name string) (*namespace, error) {
	s, err := space.New(name)
	if err != nil {
		return nil, err
	}
	ns := &namespace{s, name}
	err = ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("prepare %s: %w", name, err)
	}
	return ns, nil
}

// path is that of the network namespace.
func (ns *namespace) path() string { return filepath.Join(ns.Task(), "ns", "net") }

// sysctl sets a value below /proc/sys/net.
func (ns *namespace) sysctl(name, value string) error {
	return ns.Do(func() error { return os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0) })
}

// wire joins two namespaces by a veth pair, whose ends are up.
func wire(a, b *namespace, nameA, nameB string, mtu int) error {
	file, err := os.Open(b.path())
	if err != nil {
		return err
	}
	defer file.Close()
	err = a.Do(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA, MTU: mtu}, PeerName: nameB, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(int(file.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth pair: %w", err)
		}
		return netlink.LinkSetUp(veth)
	})
	if err != nil {
		return fmt.Errorf("join %s and %s: %w", a.name, b.name, err)
	}
	return b.onLink(nameB, netlink.LinkSetUp)
}

// onLink does something with a device of the namespace.
func (ns *namespace) onLink(name string, f func(netlink.Link) error) error {
	return ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = f(link)
		}
		if err != nil {
			return fmt.Errorf("%s in %s: %w", name, ns.name, err)
		}
		return nil
	})
}

func (ns *namespace) address(link string, prefix netip.Prefix) error {
	return ns.onLink(link, func(l netlink.Link) error {
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix)})
	})
}

// route adds a route through a next hop, which need not be on the link; a zero
// next hop means that the destination is on the link.
func (ns *namespace) route(link string, to netip.Prefix, via netip.Addr) error {
	return ns.onLink(link, func(l netlink.Link) error {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(to), Scope: netlink.SCOPE_LINK}
		if via.IsValid() {
			r.Gw, r.Scope = via.AsSlice(), netlink.SCOPE_UNIVERSE
			r.SetFlag(netlink.FLAG_ONLINK)
		}
		return netlink.RouteAdd(r)
	})
}

// neighbour adds a permanent neighbour.
func (ns *namespace) neighbour(link string, ip netip.Addr, mac net.HardwareAddr) error {
	return ns.onLink(link, func(l netlink.Link) error {
		return netlink.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: ip.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT})
	})
}

// vxlan makes a tunnel to one other node, as plan asks for it for many.
func (ns *namespace) vxlan(underlay string, self, peer netip.Addr, pods netip.Prefix) error {
	mac := func(a netip.Addr) net.HardwareAddr {
		b := a.As4()
		return net.HardwareAddr{2, 0, b[0], b[1], b[2], b[3]}
	}
	err := ns.onLink(underlay, func(l netlink.Link) error {
		tunnel := &netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: "tunnel", MTU: l.Attrs().MTU - 50, HardwareAddr: mac(self)},
			VxlanId:   1, Port: 8472, SrcAddr: self.AsSlice(), VtepDevIndex: l.Attrs().Index, UDPCSum: true,
		}
		if err := netlink.LinkAdd(tunnel); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(tunnel); err != nil {
			return err
		}
		return netlink.NeighAppend(&netlink.Neigh{LinkIndex: tunnel.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
			State: netlink.NUD_PERMANENT, IP: peer.AsSlice(), HardwareAddr: mac(peer)})
	})
	if err != nil {
		return err
	}
	if err := ns.neighbour("tunnel", peer, mac(peer)); err != nil {
		return err
	}
	return ns.route("tunnel", pods, peer)
}

// plug joins a pod to a node as Twill does: a pair, the pod's single address and
// one next hop for everything, and on the node a route and a neighbour.
func plug(node, pod *namespace, link string, addr netip.Addr, mtu int) error {
	if err := wire(node, pod, link, "eth0", mtu); err != nil {
		return err
	}
	macs := map[*namespace]net.HardwareAddr{}
	for ns, name := range map[*namespace]string{node: link, pod: "eth0"} {
		if err := ns.onLink(name, func(l netlink.Link) error { macs[ns] = l.Attrs().HardwareAddr; return nil }); err != nil {
			return err
		}
	}
	gateway, single := netip.MustParseAddr(plan.PodGateway4), netip.PrefixFrom(addr, addr.BitLen())
	for _, step := range []func() error{
		func() error { return pod.address("eth0", single) },
		func() error { return pod.route("eth0", netip.MustParsePrefix("0.0.0.0/0"), gateway) },
		func() error { return pod.neighbour("eth0", gateway, macs[node]) },
		func() error { return node.route(link, single, netip.Addr{}) },
		func() error { return node.neighbour(link, addr, macs[pod]) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
