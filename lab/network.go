package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/lab/space"
)

const bridgeName = "br0"

// makeSwitch makes a space that is the link between the nodes, and their
// default gateway, which leads nowhere.
func makeSwitch(cfg *Config) (*space.Space, error) {
	s, err := space.New("switch")
	if err != nil {
		return nil, err
	}
	err = s.Do(func() error {
		if err := prepare(); err != nil {
			return err
		}
		// Frames between nodes are not this host's packets: keep them away
		// from its filters.
		for _, name := range []string{"iptables", "ip6tables", "arptables"} {
			if err := sysctl("net/bridge/bridge-nf-call-"+name, "0"); err != nil {
				return err
			}
		}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		return configure(bridgeName, cfg.hostPrefixes(gatewayHost))
	})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("make the switch: %w", err)
	}
	return s, nil
}

// plug gives a space its devices: an eth0 with the host's addresses, joined to the
// switch, and before it, for a node of a lab with NAT, that to the NAT. The kernel
// goes through devices in the order in which they were made.
func plug(cfg *Config, sw, s *space.Space, name string, host int) error {
	gateways := cfg.hostPrefixes(gatewayHost)
	if err := s.Do(prepare); err != nil {
		return fmt.Errorf("plug %s in: %w", name, err)
	}
	if cfg.NAT && host != outsideHost {
		gateways = cfg.natPrefixes(natGateway)
		if err := plugNAT(cfg, sw, s, name); err != nil {
			return fmt.Errorf("plug %s into the NAT: %w", name, err)
		}
	}
	if err := plugSwitch(cfg, sw, s, name, host); err != nil {
		return fmt.Errorf("plug %s in: %w", name, err)
	}
	return s.Do(func() error {
		for _, gateway := range gateways {
			if err := addDefaultRoute(gateway.Addr()); err != nil {
				return fmt.Errorf("plug %s in: %w", name, err)
			}
		}
		return nil
	})
}

const natDevice = "nat0"

// plugNAT gives a space a link of its own to a gateway, which leads nowhere.
func plugNAT(cfg *Config, sw, s *space.Space, name string) error {
	port := "nat-" + name
	err := sw.Do(func() error {
		if old, err := netlink.LinkByName(port); err == nil { // of before a reboot
			return netlink.LinkDel(old)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := joinSpaces(sw, s, port, natDevice, 0); err != nil {
		return err
	}
	if err := sw.Do(func() error { return configure(port, cfg.natPrefixes(natGateway)) }); err != nil {
		return err
	}
	return s.Do(func() error { return configure(natDevice, cfg.natPrefixes(natHost)) })
}

// joinSpaces makes a link from a port of the switch's space to a device of another.
// The port is part of the bridge with this index, if it is not 0.
func joinSpaces(sw, s *space.Space, port, device string, bridge int) error {
	ns, err := os.Open(filepath.Join(s.Task(), "ns", "net"))
	if err != nil {
		return err
	}
	defer ns.Close()
	return sw.Do(func() error {
		link := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: port, MasterIndex: bridge},
			PeerName:      device,
			PeerNamespace: netlink.NsFd(int(ns.Fd())),
		}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("add veth pair: %w", err)
		}
		return netlink.LinkSetUp(link)
	})
}

func plugSwitch(cfg *Config, sw, s *space.Space, name string, host int) error {
	var bridge netlink.Link
	err := sw.Do(func() (err error) {
		bridge, err = netlink.LinkByName(bridgeName)
		return err
	})
	if err != nil {
		return err
	}
	if err := joinSpaces(sw, s, name, "eth0", bridge.Attrs().Index); err != nil {
		return err
	}
	return s.Do(func() error { return configure("eth0", cfg.hostPrefixes(host)) })
}

// prepare readies a new network namespace, on its thread. Addresses of a lab
// are never doubled, so IPv6 need not wait a second or two to find out.
func prepare() error {
	for _, scope := range []string{"all", "default"} {
		if err := sysctl("net/ipv6/conf/"+scope+"/accept_dad", "0"); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

func configure(device string, addresses []netip.Prefix) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	for _, p := range addresses {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, device, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", device, err)
	}
	return nil
}

func addDefaultRoute(gateway netip.Addr) error {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gateway.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(all), Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add default route by %s: %w", gateway, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctl sets a setting of the calling thread's network namespace. A kernel
// without it has nothing to be set.
func sysctl(name, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}
