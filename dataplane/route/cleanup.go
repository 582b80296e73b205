package route

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Cleanup removes all that is ours, known by name, prefix and protocol, from
// the network namespace of the calling thread, and says what that was. Pods
// lose their network. Sysctls are RestoreSysctls' business.
func Cleanup(log *slog.Logger) (removed []string, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer h.Close()
	removed, err = cleanRoutes(h)
	links, linksErr := cleanLinks(h)
	removed = append(removed, links...)
	if log != nil {
		log.Info("cleaned up devices and routes", "removed", len(removed))
	}
	return removed, errors.Join(err, linksErr)
}

func cleanRoutes(h *netlink.Handle) (removed []string, err error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Protocol: plan.RouteProtocol}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			errs = append(errs, fmt.Errorf("read routes: %w", err))
		}
		for _, r := range routes {
			if r.Protocol != plan.RouteProtocol {
				continue
			}
			r.Flags = 0 // what the kernel reports there, such as linkdown, it does not accept
			if err := h.RouteDel(&r); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("delete route %s: %w", r.Dst, err))
				continue
			}
			removed = append(removed, "route "+r.Dst.String())
		}
	}
	return removed, errors.Join(errs...)
}

func cleanLinks(h *netlink.Handle) (removed []string, err error) {
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("read links: %w", err)
	}
	groups := map[uint32]bool{}
	var doomed []netlink.Link
	for _, l := range links {
		groups[l.Attrs().Group] = true
		if ours(l.Attrs().Name) && (l.Type() == plan.LinkVXLAN || l.Type() == plan.LinkVeth) {
			doomed = append(doomed, l)
		}
	}
	if len(doomed) == 0 {
		return nil, nil
	}
	group := uint32(1)
	for groups[group] {
		group++
	}
	var errs []error
	for _, l := range doomed {
		if err := h.LinkSetGroup(l, int(group)); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("delete link %s: %w", l.Attrs().Name, err))
			continue
		}
		removed = append(removed, "link "+l.Attrs().Name)
	}
	if err := deleteGroup(group); err != nil && !gone(err) {
		return nil, errors.Join(append(errs, fmt.Errorf("delete %d links: %w", len(removed), err))...)
	}
	return removed, errors.Join(errs...)
}

// deleteGroup deletes all devices of a group at once: one by one each waits for
// an RCU grace period, 22 ms, which for a thousand pods is half a minute.
func deleteGroup(group uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
