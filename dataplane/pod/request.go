package pod

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// named says by its name which link a request is about.
func named(link string) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(link)) }

func getLink(name string) request {
	return newRequest("find "+name, unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC), named(name))
}

func deleteLink(name string) request {
	return newRequest("delete "+name, unix.RTM_DELLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC), named(name))
}

func raise(name string, index int) request {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	return newRequest("bring "+name+" up in the pod", unix.RTM_NEWLINK, 0, m)
}

func addAddress(p netip.Prefix, index int) request {
	m := nl.NewIfAddrmsg(familyOf(p.Addr()))
	m.Prefixlen, m.Index = uint8(p.Bits()), uint32(index)
	if p.Addr().Is6() {
		m.Flags = unix.IFA_F_NODAD // IPAM vouches for it; detection would take a second
	}
	address := p.Addr().AsSlice()
	return newRequest("add address "+p.Addr().String()+" in the pod", unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m,
		nl.NewRtAttr(unix.IFA_LOCAL, address), nl.NewRtAttr(unix.IFA_ADDRESS, address))
}

// addNeighbour makes a next hop known for good.
func addNeighbour(next netip.Addr, index int) request {
	m := &netlink.Ndmsg{Family: uint8(familyOf(next)), Index: uint32(index), State: unix.NUD_PERMANENT}
	return newRequest("add neighbour "+next.String()+" in the pod", unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m,
		nl.NewRtAttr(unix.NDA_DST, next.AsSlice()), nl.NewRtAttr(unix.NDA_LLADDR, gatewayMAC()))
}

func addRoute(r *netlink.Route) request {
	m := nl.NewRtMsg()
	bits, size := r.Dst.Mask.Size()
	m.Family, m.Dst_len, m.Scope = unix.AF_INET, uint8(bits), uint8(r.Scope)
	if size == 128 {
		m.Family = unix.AF_INET6
	}
	request := newRequest(fmt.Sprintf("add route %s in the pod", r.Dst), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m,
		nl.NewRtAttr(unix.RTA_DST, r.Dst.IP), nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(r.LinkIndex))))
	if r.Gw != nil {
		request.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Gw))
	}
	return request
}

func getRoute(to netip.Addr) request {
	m := &nl.RtMsg{}
	m.Family, m.Dst_len = uint8(familyOf(to)), uint8(to.BitLen())
	return newRequest("find the way to "+to.String(), unix.RTM_GETROUTE, 0, m, nl.NewRtAttr(unix.RTA_DST, to.AsSlice()))
}

func familyOf(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
