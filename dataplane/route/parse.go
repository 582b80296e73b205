package route

import (
	"encoding/binary"
	"net/netip"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
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
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofRtMsg:])
	if err != nil {
		return m, false
	}
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
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_GATEWAY:
			m.Gateway, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_PREFSRC:
			m.Source, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_OIF:
			m.index = int(word(a.Value))
		case unix.RTA_TABLE:
			table = word(a.Value)
		case unix.RTA_PRIORITY:
			metric = word(a.Value)
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

// word reads a 32-bit attribute in the machine's byte order.
func word(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// parseAddress reads the payload of RTM_NEWADDR and RTM_DELADDR.
func parseAddress(data []byte) (index int, p netip.Prefix, ok bool) {
	if len(data) < unix.SizeofIfAddrmsg {
		return 0, p, false
	}
	bits, index := int(data[1]), int(word(data[4:]))
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, p, false
	}
	var addr netip.Addr
	for _, a := range attrs {
		// On a point-to-point device IFA_ADDRESS is the far end; IPv6 sends
		// IFA_LOCAL only then.
		if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS && !addr.IsValid() {
			addr, _ = netip.AddrFromSlice(a.Value)
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
	m.index = int(word(data[4:]))
	m.permanent = binary.NativeEndian.Uint16(data[8:])&unix.NUD_PERMANENT != 0
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofNdMsg:])
	if err != nil {
		return m, false
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.NDA_DST:
			m.ip, _ = netip.AddrFromSlice(a.Value)
		case unix.NDA_LLADDR:
			if len(a.Value) == len(m.mac) {
				m.mac = plan.MAC(a.Value)
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

// deviceOf converts what the netlink library parsed.
func deviceOf(l netlink.Link) device {
	a := l.Attrs()
	d := device{index: a.Index, kind: l.Type(), mtu: a.MTU, up: a.RawFlags&unix.IFF_UP != 0}
	if len(a.HardwareAddr) == len(d.mac) {
		d.mac = plan.MAC(a.HardwareAddr)
	}
	if d.kind == plan.LinkVeth {
		d.peer, d.peerNS = a.ParentIndex, a.NetNsID
	}
	if v, ok := l.(*netlink.Vxlan); ok {
		local, _ := netip.AddrFromSlice(v.SrcAddr)
		d.tunnel = tunnel{
			vni: v.VxlanId, port: v.Port, local: local, underlay: v.VtepDevIndex,
			learning: v.Learning, noChecksum: !v.UDPCSum, collectMeta: v.FlowBased,
		}
	}
	return d
}
