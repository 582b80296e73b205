package route

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

// eventBuffer lets the notifications of some 80,000 writes wait; the kernel
// accounts near 1 kB for each. It is a limit, not an allocation.
const eventBuffer = 64 << 20

// events is a netlink socket that hears of every change in its namespace.
type events struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

func openEvents() (*events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer) // clamped; an overflow only costs a re-read
	}
	var groups uint32
	for _, g := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
	} {
		groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to netlink notifications: %w", err)
	}
	e := &events{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, 64<<10)}
	if e.raw, err = e.file.SyscallConn(); err != nil {
		e.file.Close()
		return nil, fmt.Errorf("subscribe to netlink notifications: %w", err)
	}
	return e, nil
}

// wait returns when notifications are there, or were lost, or after interrupt.
func (e *events) wait() (lost bool, err error) {
	var peek [1]byte
	var failure error
	err = e.raw.Read(func(fd uintptr) bool {
		_, _, failure = unix.Recvfrom(int(fd), peek[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return failure != unix.EAGAIN && failure != unix.EINTR
	})
	if err != nil {
		return false, err
	}
	if failure == unix.ENOBUFS {
		return true, nil
	}
	return false, failure
}

// interrupt makes wait return at once, until rearm.
func (e *events) interrupt() { _ = e.file.SetReadDeadline(time.Unix(1, 0)) }

func (e *events) rearm() { _ = e.file.SetReadDeadline(time.Time{}) }

// news is the last thing heard of each object: older news of the same object
// would only look like somebody else's changes.
type news struct {
	lost bool // notifications were lost
	// defaultRoute: one that isn't ours came, went or changed.
	defaultRoute bool
	links        map[int]linkNews
	addresses    map[addressAt]bool
	neighbours   map[neighbourAt]neighbourMessage
	fdb          map[fdbAt]neighbourMessage
	routes       map[netip.Prefix]routeNews
	settings     map[settingAt]string
	// replaced and freed are prefixes of which a foreign route took the place,
	// or left it.
	replaced, freed map[netip.Prefix]struct{}
}

type linkNews struct {
	name    string
	device  device
	gone    bool
	wasDown bool // at least for a moment: its routes are gone
}

type addressAt struct {
	index  int
	prefix netip.Prefix
}

type neighbourAt struct {
	index int
	ip    netip.Addr
}

type fdbAt struct {
	index int
	mac   plan.MAC
}

// settingAt is a sysctl, such as rp_filter, of a device or of all.
type settingAt struct {
	index        int
	family, name string
}

// allLinks is the index of settings that are not a device's (NETCONFA_IFINDEX_ALL).
const allLinks = -1

type routeNews struct {
	routeMessage
	gone bool
}

func noNews() news {
	return news{
		links: map[int]linkNews{}, addresses: map[addressAt]bool{}, neighbours: map[neighbourAt]neighbourMessage{},
		fdb: map[fdbAt]neighbourMessage{}, routes: map[netip.Prefix]routeNews{}, settings: map[settingAt]string{},
		replaced: map[netip.Prefix]struct{}{}, freed: map[netip.Prefix]struct{}{},
	}
}

// read takes all notifications that are there.
func (e *events) read() news {
	n := noNews()
	err := e.raw.Control(func(fd uintptr) {
		for {
			size, from, err := unix.Recvfrom(int(fd), e.buf, unix.MSG_DONTWAIT)
			switch {
			case err == unix.EAGAIN:
				return
			case err == unix.EINTR:
				continue
			case err == unix.ENOBUFS:
				n.lost = true
				continue
			case err != nil:
				n.lost = true
				return
			}
			if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
				continue // not the kernel
			}
			n.takeAll(e.buf[:size])
		}
	})
	n.lost = n.lost || err != nil && !errors.Is(err, os.ErrClosed)
	return n
}

func (n *news) takeAll(datagram []byte) {
	messages, err := syscall.ParseNetlinkMessage(datagram)
	if err != nil {
		n.lost = true
		return
	}
	for _, m := range messages {
		n.take(m)
	}
}

func (n *news) take(m syscall.NetlinkMessage) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		n.takeLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if index, p, ok := parseAddress(m.Data); ok {
			n.addresses[addressAt{index, p}] = m.Header.Type == unix.RTM_NEWADDR
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		e, ok := parseNeighbour(m.Data)
		if !ok {
			return
		}
		e.permanent = e.permanent && m.Header.Type == unix.RTM_NEWNEIGH
		if e.bridge {
			n.fdb[fdbAt{e.index, e.mac}] = e
		} else {
			n.neighbours[neighbourAt{e.index, e.ip}] = e
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		n.takeRoute(m)
	case unix.RTM_NEWNETCONF:
		for at, value := range parseSettings(m.Data) {
			n.settings[at] = value
		}
	}
}

func (n *news) takeLink(m syscall.NetlinkMessage) {
	// Bridges announce their ports in messages of the same type.
	if len(m.Data) > 0 && m.Data[0] != unix.AF_UNSPEC {
		return
	}
	name, d, ok := parseLink(m.Data)
	if !ok {
		n.lost = true
		return
	}
	n.links[d.index] = linkNews{
		name: name, device: d, gone: m.Header.Type == unix.RTM_DELLINK,
		wasDown: n.links[d.index].wasDown || !d.up,
	}
}

func (n *news) takeRoute(m syscall.NetlinkMessage) {
	r, ok := parseRoute(m.Data)
	n.defaultRoute = n.defaultRoute || ok && r.prefix.Bits() == 0 && r.protocol != plan.RouteProtocol
	if !ok || !r.main {
		return
	}
	gone := m.Header.Type == unix.RTM_DELROUTE
	switch {
	case r.protocol == plan.RouteProtocol:
		delete(n.replaced, r.prefix)
		n.routes[r.prefix] = routeNews{r, gone}
	case gone:
		n.freed[r.prefix] = struct{}{}
	case m.Header.Flags&unix.NLM_F_REPLACE != 0:
		n.replaced[r.prefix] = struct{}{}
	}
}
