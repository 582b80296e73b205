package conntrack

import (
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What package nl does not name (linux/netfilter/nfnetlink_conntrack.h). The
// kernel filters a dump by the parts of a tuple whose flags are set; kernels
// before 5.8 ignore this and dump everything.
const (
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2

	filterSource      = 1 << 0
	filterDestination = 1 << 1
	filterProtocol    = 1 << 3
)

// filterUDP passes the connections of UDP.
func filterUDP() []*nl.RtAttr {
	tuple := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil).AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP})
	return []*nl.RtAttr{tuple, filterFlags(ctaFilterOrigFlags, filterProtocol)}
}

// filtersOf pass, together, the connections of an address: it began them, it was
// asked, or it answers for another.
func filtersOf(a netip.Addr) (all [][]*nl.RtAttr) {
	source, destination := nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	if a.Is4() {
		source, destination = nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	}
	for _, f := range []struct{ tuple, ip, flags, flag int }{
		{nl.CTA_TUPLE_ORIG, source, ctaFilterOrigFlags, filterSource},
		{nl.CTA_TUPLE_ORIG, destination, ctaFilterOrigFlags, filterDestination},
		{nl.CTA_TUPLE_REPLY, source, ctaFilterReplyFlags, filterSource},
	} {
		tuple := nl.NewRtAttr(unix.NLA_F_NESTED|f.tuple, nil)
		tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil).AddRtAttr(f.ip, a.AsSlice())
		all = append(all, []*nl.RtAttr{tuple, filterFlags(f.flags, f.flag)})
	}
	return all
}

func filterFlags(of, flags int) *nl.RtAttr {
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	filter.AddRtAttr(of, nl.Uint32Attr(uint32(flags)))
	return filter
}
