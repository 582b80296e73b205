package route

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// read replaces the belief by what the kernel has, and marks dirty all that is
// wanted or there: equal entries cost no write.
func (k *Kernel) read(p *plan.Plan) error {
	k.events.read() // older than what is read now
	if err := errors.Join(
		k.readLinks(p),
		k.readAddresses(p),
		k.readNeighbours(unix.AF_INET),
		k.readNeighbours(unix.AF_INET6),
		k.readFDB(),
		k.readRoutes(unix.AF_INET),
		k.readRoutes(unix.AF_INET6),
	); err != nil {
		return err
	}
	k.sysctls.reset()
	clear(k.conflicts)
	// What is there when the kernel is read for the first time is of an agent that
	// ran before.
	suspicious := k.wasRead
	doubt(p.Sysctls, k.sysctls, suspicious)
	doubt(p.Links, k.links, suspicious)
	doubt(p.Addresses, k.addresses, suspicious)
	doubt(p.Neighbours, k.neighbours, suspicious)
	doubt(p.FDB, k.fdb, suspicious)
	doubt(p.Routes, k.routes, suspicious)
	k.unread, k.wasRead = false, true
	return nil
}

func doubt[K, V, B comparable](t *plan.Table[K, V], b *belief[K, B], suspicious bool) {
	for key := range t.All() {
		b.doubt(key, t, suspicious)
	}
	for key := range b.have {
		b.doubt(key, t, suspicious)
	}
}

// dumpTries is how often a list is read that changes meanwhile.
const dumpTries = 5

// dump asks for all objects of a kind. body is the request's fixed part.
func (k *Kernel) dump(kind, answer uint16, body []byte, attrs ...*nl.RtAttr) ([][]byte, error) {
	for range dumpTries {
		req := &nl.NetlinkRequest{
			NlMsghdr: unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: kind, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP},
			Sockets:  k.dumping,
		}
		req.AddRawData(body)
		for _, a := range attrs {
			req.AddRawData(a.Serialize())
		}
		messages, err := req.Execute(unix.NETLINK_ROUTE, answer)
		switch {
		case errors.Is(err, netlink.ErrDumpInterrupted):
			continue // something changed meanwhile: the list may have holes
		case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
			return nil, nil // a kernel without IPv6, or without routes so far
		}
		return messages, err
	}
	return nil, errors.New("it changes faster than it can be read")
}

func (k *Kernel) readLinks(p *plan.Plan) error {
	messages, err := k.dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, make([]byte, unix.SizeofIfInfomsg))
	if err != nil {
		return fmt.Errorf("read links: %w", err)
	}
	k.names, k.indexes, k.up = map[int]string{}, map[string]int{}, map[string]bool{}
	k.hostLinks, k.hostChanged = map[int]hostLink{}, true
	k.links.reset()
	for _, m := range messages {
		name, d, ok := parseLink(m)
		if !ok {
			return errors.New("read links: the kernel's answer can't be understood")
		}
		k.names[d.index], k.indexes[name], k.up[name] = name, d.index, d.up
		if !ours(name) {
			k.hostLinks[d.index] = hostLink{name, d.mtu, d.up}
		}
		if _, wanted := p.Links.Get(name); wanted || ours(name) {
			k.links.set(name, d)
		}
	}
	return nil
}

// getLink reads one device.
func (k *Kernel) getLink(name string) (device, error) {
	req := &nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: unix.RTM_GETLINK, Flags: unix.NLM_F_REQUEST},
		Sockets:  k.dumping,
	}
	req.AddRawData(make([]byte, unix.SizeofIfInfomsg))
	req.AddRawData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)).Serialize())
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return device{}, err
	}
	for _, m := range messages {
		if got, d, ok := parseLink(m); ok && got == name {
			return d, nil
		}
	}
	return device{}, errors.New("the kernel's answer can't be understood")
}

func (k *Kernel) readAddresses(p *plan.Plan) error {
	messages, err := k.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return fmt.Errorf("read addresses: %w", err)
	}
	k.addresses.reset()
	for _, m := range messages {
		index, prefix, ok := parseAddress(m)
		link, mine := k.linkOfOurs(index)
		if !ok || !mine {
			continue
		}
		key := plan.AddressKey{Link: link, Prefix: prefix}
		if _, wanted := p.Addresses.Get(key); wanted || !prefix.Addr().IsLinkLocalUnicast() {
			k.addresses.set(key, struct{}{})
		}
	}
	return nil
}

func (k *Kernel) readNeighbours(family uint8) error {
	body := make([]byte, unix.SizeofNdMsg)
	body[0] = family
	messages, err := k.dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, body)
	if err != nil {
		return fmt.Errorf("read neighbours: %w", err)
	}
	if family == unix.AF_INET { // the first of the two
		k.neighbours.reset()
	}
	for _, m := range messages {
		e, ok := parseNeighbour(m)
		if link, mine := k.linkOfOurs(e.index); ok && mine && e.permanent {
			k.neighbours.set(plan.NeighbourKey{Link: link, IP: e.ip}, e.mac)
		}
	}
	return nil
}

func (k *Kernel) readFDB() error {
	k.fdb.reset()
	for link, d := range k.links.have {
		if d.kind != plan.LinkVXLAN {
			continue
		}
		msg := netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(d.index)}
		messages, err := k.dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, msg.Serialize())
		if err != nil {
			return fmt.Errorf("read forwarding entries of %s: %w", link, err)
		}
		for _, m := range messages {
			if e, ok := parseNeighbour(m); ok && e.permanent && e.index == d.index {
				k.fdb.set(plan.FDBKey{Link: link, MAC: e.mac}, e.ip)
			}
		}
	}
	return nil
}

func (k *Kernel) readRoutes(family uint8) error {
	if family == unix.AF_INET {
		k.routes.reset()
	}
	return k.eachRoute(family, plan.RouteProtocol, func(m routeMessage) {
		k.routes.set(m.prefix, k.planned(m))
	})
}

// eachRoute calls f with the main table's routes that have our metric and the
// protocol; 0 is any.
func (k *Kernel) eachRoute(family, protocol uint8, f func(routeMessage)) error {
	msg := nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Table: unix.RT_TABLE_MAIN, Protocol: protocol}}
	messages, err := k.dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, msg.Serialize())
	if err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	for _, data := range messages {
		if m, ok := parseRoute(data); ok && m.main && (protocol == 0 || m.protocol == int(protocol)) {
			f(m)
		}
	}
	return nil
}

// holders reads which routes, ours or not, have the prefixes that are wanted.
func (k *Kernel) holders(p *plan.Plan) (map[netip.Prefix]routeMessage, error) {
	all := map[netip.Prefix]routeMessage{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := k.eachRoute(family, 0, func(m routeMessage) {
			if _, wanted := p.Routes.Get(m.prefix); wanted {
				if first, ok := all[m.prefix]; !ok || first.protocol != plan.RouteProtocol {
					all[m.prefix] = m
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
