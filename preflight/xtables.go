package preflight

import (
	"encoding/binary"
)

// Sizes and places of linux/netfilter/xt_*.h.
const (
	sizeTCP         = 12 // struct xt_tcp
	sizeUDP         = 10 // struct xt_udp
	multiportPorts  = 15 // of struct xt_multiport_v1
	conntrackFlags  = 146
	conntrackInvert = 148
	conntrackState  = 150 // struct xt_conntrack_mtinfo3
	conntrackByCt   = 1   // XT_CONNTRACK_STATE
)

// extension judges a condition of iptables, which nf_tables keeps as it is.
func (m *machine) extension(name string, info []byte) match {
	ports := func(proto byte, invert byte) match {
		first, last := binary.NativeEndian.Uint16(info[4:]), binary.NativeEndian.Uint16(info[6:])
		anySource := binary.NativeEndian.Uint32(info) == 0xffff0000 || binary.NativeEndian.Uint16(info) == 0 && binary.NativeEndian.Uint16(info[2:]) == 0xffff
		anyPort := first == 0 && last == 0xffff
		within := first <= m.port && m.port <= last
		switch {
		case m.proto != proto:
			return no
		case !anySource || m.port == 0 && !anyPort:
			return maybe
		}
		return matching(within != (invert&2 != 0))
	}
	switch {
	case name == "comment":
		return yes
	case name == "tcp" && len(info) >= sizeTCP:
		const flagMask, invert = 9, 11
		if got := ports(6, info[invert]); got != yes || info[flagMask] == 0 {
			return got
		}
		return maybe
	case name == "udp" && len(info) >= sizeUDP:
		return ports(17, info[8])
	case name == "multiport" && len(info) >= 2+multiportPorts*3+1:
		return m.multiport(info)
	case name == "conntrack" && len(info) > conntrackState+2:
		if binary.NativeEndian.Uint16(info[conntrackFlags:]) != conntrackByCt {
			return maybe
		}
		inverted := binary.NativeEndian.Uint16(info[conntrackInvert:])&conntrackByCt != 0
		return matching(binary.NativeEndian.Uint16(info[conntrackState:])&ctNew != 0 != inverted)
	case name == "state" && len(info) >= 4:
		return matching(binary.NativeEndian.Uint32(info)&ctNew != 0)
	}
	return maybe
}

// multiport judges a list of ports, in which two that belong together are a range.
func (m *machine) multiport(info []byte) match {
	const toSource = 0
	flags, count := info[0], int(info[1])
	inRange, inverted := info[2+2*multiportPorts:], info[2+3*multiportPorts] != 0
	if flags == toSource || m.port == 0 || count > multiportPorts {
		return maybe
	}
	port := func(i int) uint16 { return binary.NativeEndian.Uint16(info[2+2*i:]) }
	for i := 0; i < count; i++ {
		first, last := port(i), port(i)
		if inRange[i] != 0 && i+1 < count {
			i++
			last = port(i)
		}
		if first <= m.port && m.port <= last {
			return matching(!inverted)
		}
	}
	return matching(inverted)
}

// target is the verdict of an extension of iptables that gives one.
func target(name string) []string {
	switch name {
	case "REJECT", "DROP":
		return []string{"drop"}
	case "NFQUEUE":
		return []string{"queue"}
	}
	return nil
}
