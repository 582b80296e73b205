package route

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// addLinks makes the dirty links that are wanted, all but up, and returns the
// names of those that can be brought up.
func (a *pass) addLinks() (raise []string) {
	takeChanged(a.plan.Links, a.links, false)
	for name := range a.plan.Links.Dirty() {
		want, ok := a.plan.Links.Get(name)
		if !ok {
			continue
		}
		a.managed[name] = struct{}{}
		before := a.writes
		err := a.putLink(name, want)
		if a.writes > before {
			a.mends(a.links.suspected(name))
			delete(a.links.suspect, name)
		}
		if err != nil {
			a.fail("link", err)
			if _, exists := a.links.have[name]; !exists {
				continue
			}
		} else {
			a.plan.Links.MarkClean(name)
		}
		raise = append(raise, name)
	}
	return raise
}

func (a *pass) raiseLinks(names []string) {
	if len(names) > 0 {
		a.settle() // news from before must not look as if the link went down again
	}
	for _, name := range names {
		d, ok := a.links.have[name]
		if !ok || d.up {
			continue
		}
		if err := a.handle.LinkSetUp(handleOf(d)); err != nil {
			a.fail("link", fmt.Errorf("bring link %s up: %w", name, err))
			a.plan.Links.MarkDirty(name)
			continue
		}
		d.up = true
		a.links.set(name, d)
		a.up[name] = true
		a.wrote()
		a.mends(a.links.suspected(name))
		if d.kind == plan.LinkVeth {
			a.activatePeer(d)
		}
	}
	for name := range a.links.suspect {
		if !a.plan.Links.IsDirty(name) {
			delete(a.links.suspect, name)
		}
	}
}

// activatePeer makes the pod's end of a pair ready to send. It gets its carrier
// with the host end, but the kernel gives it a queue only a little later, in
// the background (linkwatch), and drops what the pod sends in between; asking
// for the link's state makes the kernel do it at once (Linux 6.8). Elsewhere,
// and if it fails, the first packet of a very quick pod may be lost.
func (a *pass) activatePeer(d device) {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(d.peer))
	req := &nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: unix.RTM_GETLINK, Flags: unix.NLM_F_REQUEST},
		Sockets:  a.dumping,
	}
	req.AddRawData(body)
	if d.peerNS >= 0 {
		req.AddRawData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(d.peerNS))).Serialize())
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK); err != nil {
		a.log.Debug("ask for the state of a pod's interface", "error", err)
	}
}

func (a *pass) putLink(name string, want plan.Link) error {
	d, exists := a.links.have[name]
	if exists && d.kind != want.Kind {
		return fmt.Errorf("link %s is a %s made by somebody else, and has the name of our %s: remove or rename it", name, d.kind, want.Kind)
	}
	switch want.Kind {
	case plan.LinkVeth:
		if !exists {
			return &MissingLinkError{Link: name}
		}
	case plan.LinkVXLAN:
		underlay, err := a.index(want.Underlay)
		if err != nil {
			return err
		}
		t := tunnel{vni: want.VNI, port: want.Port, local: want.Local, underlay: underlay}
		if exists && d.tunnel != t {
			a.log.Info("vxlan device is made anew: its parameters differ", "link", name)
			if err := a.deleteLink(name, d); err != nil {
				return err
			}
			exists = false
		}
		if !exists {
			if d, err = a.createVXLAN(name, want, underlay); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("link %s: its kind %q is not known here", name, want.Kind)
	}
	return a.adjustLink(name, d, want)
}

// adjustLink changes what can be changed on a living device.
func (a *pass) adjustLink(name string, d device, want plan.Link) error {
	var errs []error
	if want.MTU != 0 && d.mtu != want.MTU {
		if err := a.handle.LinkSetMTU(handleOf(d), want.MTU); err != nil {
			errs = append(errs, fmt.Errorf("set the MTU of %s to %d (it is %d): %w%s", name, want.MTU, d.mtu, err, a.mtuHint(want)))
		} else {
			d.mtu = want.MTU
			a.wrote()
		}
	}
	if want.MAC != (plan.MAC{}) && d.mac != want.MAC {
		if err := a.handle.LinkSetHardwareAddr(handleOf(d), want.MAC[:]); err != nil {
			errs = append(errs, fmt.Errorf("set the MAC of %s to %s: %w", name, want.MAC, err))
		} else {
			d.mac = want.MAC
			a.wrote()
		}
	}
	if d != a.links.have[name] {
		a.links.set(name, d)
		a.settle() // with its MAC a device loses its neighbours, permanent ones too
	}
	return errors.Join(errs...)
}

func (a *pass) mtuHint(want plan.Link) string {
	if want.Kind == plan.LinkVXLAN {
		return "; is it more than the MTU of " + want.Underlay + " less the tunnel's header?"
	}
	return ""
}

func (a *pass) createVXLAN(name string, want plan.Link, underlay int) (device, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, want.MTU
	if want.MAC != (plan.MAC{}) {
		// From the start: udev gives a device without one another MAC later.
		attrs.HardwareAddr = want.MAC[:]
	}
	v := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: want.VNI, Port: want.Port, VtepDevIndex: underlay,
		SrcAddr: want.Local.AsSlice(), UDPCSum: true,
	}
	err := a.handle.LinkAdd(v)
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%w: %s", err, a.vniHolder(want))
	}
	if err != nil {
		return device{}, fmt.Errorf("create vxlan link %s (VNI %d, port %d, local %s, on %s): %w",
			name, want.VNI, want.Port, want.Local, want.Underlay, err)
	}
	d, err := a.getLink(name)
	if err != nil {
		return device{}, fmt.Errorf("create vxlan link %s: read it back: %w", name, err)
	}
	a.links.set(name, d)
	a.names[d.index], a.indexes[name], a.up[name] = name, d.index, d.up
	a.wrote()
	return d, nil
}

// vniHolder says why a vxlan device may not be made: there can be one only for
// a VNI and port.
func (a *pass) vniHolder(want plan.Link) string {
	links, err := a.handle.LinkList()
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); err == nil && ok && v.VxlanId == want.VNI && v.Port == want.Port {
			return v.Name + " has this VNI and port; remove it or choose another VNI"
		}
	}
	return "another device has this VNI and port, or the name"
}

// removeLinks deletes the links that are no longer wanted. Host ends of pods
// are left to who attached them.
func (a *pass) removeLinks() {
	for name := range a.plan.Links.Dirty() {
		if _, wanted := a.plan.Links.Get(name); wanted {
			continue
		}
		delete(a.managed, name)
		d, exists := a.links.have[name]
		switch {
		case exists && d.kind == plan.LinkVXLAN && len(a.routes.on[name]) > 0:
			a.fail("link", fmt.Errorf("delete link %s: %d routes that could not be changed still use it", name, len(a.routes.on[name])))
			continue
		case exists && d.kind == plan.LinkVXLAN:
			if err := a.deleteLink(name, d); err != nil {
				a.fail("link", err)
				continue
			}
		}
		a.plan.Links.MarkClean(name)
		delete(a.links.suspect, name)
	}
}

// deleteLink deletes a device. What the kernel removes with it becomes dirty.
func (a *pass) deleteLink(name string, d device) error {
	if err := a.handle.LinkDel(handleOf(d)); err != nil && !gone(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	a.wrote()
	a.settle() // hears of it, and forgets all that was on it
	a.links.unset(name)
	return nil
}

// handleOf names a device by its index, so that the netlink library need not
// look it up.
func handleOf(d device) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: d.index}}
}
