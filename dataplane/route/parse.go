package route

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	"github.com/twill-net/twill/dataplane/attribute"
	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The metric of our routes: what the kernel takes when none is given. IPv6 has
// IP6_RT_PRIO_USER there.
const (
	metric4 = 0
	metric6 = 1024
)

// routeMessage is an rtmsg as far as it matters here.
type routeMessage struct {
	prefix   netip.Prefix
	protocol int
	main     bool // in the main table, with our metric, and no cache entry
	index    int  // of the output device
	multi    bool // several next hops: never ours
	plan.Route
}

// parseRoute reads the payload of RTM_NEWROUTE and RTM_DELROUTE. Link is left
// to the caller, who knows the devices' names.
func parseRoute(data []byte) (m routeMessage, ok bool) {
	if len(data) < unix.SizeofRtMsg {
		return m, false
	}
	h := nl.DeserializeRtMsg(data)
	dst, metric := netip.IPv4Unspecified(), uint32(0)
	switch h.Family {
	case unix.AF_INET:
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return m, false
	}
	table := uint32(h.Table)
	m.protocol = int(h.Protocol)
	m.OnLink = h.Flags&unix.RTNH_F_ONLINK != 0
	for kind, value := range attribute.All(data[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(value)
		case unix.RTA_GATEWAY:
			m.Gateway, _ = netip.AddrFromSlice(value)
		case unix.RTA_PREFSRC:
			m.Source, _ = netip.AddrFromSlice(value)
		case unix.RTA_OIF:
			m.index = int(attribute.Uint32(value))
		case unix.RTA_TABLE:
			table = attribute.Uint32(value)
		case unix.RTA_PRIORITY:
			metric = attribute.Uint32(value)
		case unix.RTA_MULTIPATH:
			m.multi = true
		}
	}
	m.prefix = netip.PrefixFrom(dst, int(h.Dst_len))
	m.main = table == unix.RT_TABLE_MAIN && h.Flags&unix.RTM_F_CLONED == 0 && metric == metricOf(m.prefix)
	if h.Type == unix.RTN_BLACKHOLE {
		m.Route, m.index = plan.Route{Blackhole: true}, 0
	}
	return m, m.prefix.IsValid()
}

func metricOf(p netip.Prefix) uint32 {
	if p.Addr().Is4() {
		return metric4
	}
	return metric6
}

// parseAddress reads the payload of RTM_NEWADDR and RTM_DELADDR.
func parseAddress(data []byte) (index int, p netip.Prefix, ok bool) {
	if len(data) < unix.SizeofIfAddrmsg {
		return 0, p, false
	}
	bits, index := int(data[1]), int(attribute.Uint32(data[4:]))
	var addr netip.Addr
	for kind, value := range attribute.All(data[unix.SizeofIfAddrmsg:]) {
		// On a point-to-point device IFA_ADDRESS is the far end; IPv6 sends
		// IFA_LOCAL only then.
		if kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !addr.IsValid() {
			addr, _ = netip.AddrFromSlice(value)
		}
	}
	p = netip.PrefixFrom(addr, bits)
	return index, p, p.IsValid()
}

// neighbourMessage is an ndmsg: a neighbour (ip → mac), or a forwarding entry
// of a vxlan device (mac → ip).
type neighbourMessage struct {
	index     int
	bridge    bool
	permanent bool
	ip        netip.Addr
	mac       plan.MAC
}

// parseNeighbour reads the payload of RTM_NEWNEIGH and RTM_DELNEIGH.
func parseNeighbour(data []byte) (m neighbourMessage, ok bool) {
	if len(data) < unix.SizeofNdMsg {
		return m, false
	}
	m.bridge = data[0] == unix.AF_BRIDGE
	m.index = int(attribute.Uint32(data[4:]))
	m.permanent = binary.NativeEndian.Uint16(data[8:])&unix.NUD_PERMANENT != 0
	for kind, value := range attribute.All(data[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			m.ip, _ = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			if len(value) == len(m.mac) {
				m.mac = plan.MAC(value)
			}
		}
	}
	return m, m.ip.IsValid()
}

// device is a link as the kernel has it.
type device struct {
	index  int
	kind   string
	mtu    int
	mac    plan.MAC
	up     bool
	tunnel tunnel
	// A veth's other end, and the id of its namespace; -1 for the same one.
	peer, peerNS int
}

// tunnel is what can't be changed on a living vxlan device without breaking
// what was set up on it.
type tunnel struct {
	vni, port   int
	local       netip.Addr
	underlay    int // index of the device below
	learning    bool
	noChecksum  bool
	collectMeta bool // "external": the entries of one VNI don't apply
}

// parseLink reads the payload of RTM_NEWLINK and RTM_DELLINK.
func parseLink(data []byte) (name string, d device, ok bool) {
	if len(data) < unix.SizeofIfInfomsg {
		return "", d, false
	}
	d = device{kind: "device", index: int(int32(attribute.Uint32(data[4:]))), up: attribute.Uint32(data[8:])&unix.IFF_UP != 0}
	parent, parentNS := 0, -1
	for kind, value := range attribute.All(data[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			name = attribute.Text(value)
		case unix.IFLA_MTU:
			d.mtu = int(attribute.Uint32(value))
		case unix.IFLA_ADDRESS:
			if len(value) == len(d.mac) {
				d.mac = plan.MAC(value)
			}
		case unix.IFLA_LINK:
			parent = int(attribute.Uint32(value))
		case unix.IFLA_LINK_NETNSID:
			parentNS = int(int32(attribute.Uint32(value)))
		case unix.IFLA_LINKINFO:
			d.parseInfo(value)
		}
	}
	if d.kind == plan.LinkVeth {
		d.peer, d.peerNS = parent, parentNS
	}
	return name, d, d.index > 0 && name != ""
}

// parseInfo reads a link's kind and, of a vxlan device, its parameters.
func (d *device) parseInfo(info []byte) {
	var parameters []byte
	for kind, value := range attribute.All(info) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			d.kind = attribute.Text(value)
		case unix.IFLA_INFO_DATA:
			parameters = value
		}
	}
	if d.kind == plan.LinkVXLAN {
		d.tunnel = parseTunnel(parameters)
	}
}

func parseTunnel(parameters []byte) tunnel {
	t := tunnel{noChecksum: true}
	set := func(value []byte) bool { return len(value) > 0 && value[0] != 0 }
	for kind, value := range attribute.All(parameters) {
		switch kind {
		case nl.IFLA_VXLAN_ID:
			t.vni = int(attribute.Uint32(value))
		case nl.IFLA_VXLAN_LINK:
			t.underlay = int(attribute.Uint32(value))
		case nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_LOCAL6:
			t.local, _ = netip.AddrFromSlice(value)
		case nl.IFLA_VXLAN_PORT:
			if len(value) >= 2 {
				t.port = int(binary.BigEndian.Uint16(value))
			}
		case nl.IFLA_VXLAN_LEARNING:
			t.learning = set(value)
		case nl.IFLA_VXLAN_UDP_CSUM:
			t.noChecksum = !set(value)
		case nl.IFLA_VXLAN_FLOWBASED:
			t.collectMeta = set(value)
		}
	}
	return t
}

// Attributes of a netconfmsg (linux/netconf.h).
const (
	netconfIndex = 1 + iota
	netconfForwarding
	netconfRPFilter
	_ // mc_forwarding
	netconfProxyNeighbours
)

// parseSettings reads the payload of RTM_NEWNETCONF.
func parseSettings(data []byte) map[settingAt]string {
	const header = 4 // a byte, padded
	if len(data) < header {
		return nil
	}
	var family string
	var names map[uint16]string
	switch data[0] {
	case unix.AF_INET:
		family, names = "ipv4", map[uint16]string{netconfForwarding: "forwarding", netconfRPFilter: "rp_filter", netconfProxyNeighbours: "proxy_arp"}
	case unix.AF_INET6:
		family, names = "ipv6", map[uint16]string{netconfForwarding: "forwarding", netconfProxyNeighbours: "proxy_ndp"}
	}
	index, settings := 0, map[settingAt]string{}
	for kind, value := range attribute.All(data[header:]) {
		number := int(int32(attribute.Uint32(value)))
		if kind == netconfIndex {
			index = number
		} else if name := names[kind]; name != "" {
			settings[settingAt{index, family, name}] = strconv.Itoa(number)
		}
	}
	return settings
}
