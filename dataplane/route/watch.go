package route

import (
	"context"
	"fmt"

	"github.com/twill-net/twill/plan"
)

// Watch calls drift whenever something of ours was changed by others, or went
// away with its device, or may work now after it failed; the next Apply mends
// it. It calls host whenever something changed of which ReadHost may read something
// else now: an address, a default route, or the name, the MTU or the state of a device
// that isn't ours. It returns nil when ctx ends. Both are called from several
// goroutines; they must neither block nor call Apply themselves.
func (k *Kernel) Watch(ctx context.Context, drift, host func()) error {
	k.mu.Lock()
	k.drift, k.host = drift, host
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		k.drift, k.host = nil, nil
		k.mu.Unlock()
	}()
	k.events.rearm()
	defer context.AfterFunc(ctx, k.events.interrupt)()
	for {
		lost, err := k.events.wait()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for netlink notifications: %w", err)
		}
		k.mu.Lock()
		pending := k.unread // the caller is about to apply, or was told already
		k.unread, k.hostChanged = k.unread || lost, k.hostChanged || lost
		k.settle()
		drifted := !pending && k.drifted()
		if drifted {
			k.log.Debug("drift: what is ours in the kernel was changed", "links", len(k.links.changed), "addresses", len(k.addresses.changed),
				"neighbours", len(k.neighbours.changed), "forwarding", len(k.fdb.changed), "routes", len(k.routes.changed), "all", k.unread)
		}
		changed := k.takeHostChanged()
		k.mu.Unlock()
		if drifted {
			drift()
		}
		if changed {
			host()
		}
	}
}

// takeHostChanged says, once, that the host changed.
func (k *Kernel) takeHostChanged() bool {
	changed := k.hostChanged && k.host != nil
	k.hostChanged = k.hostChanged && !changed
	return changed
}

// hostLink is what matters of a device that isn't ours.
type hostLink struct {
	name string
	mtu  int
	up   bool
}

// learnHost notes whether the host changed in a way that matters. Devices that come
// and go do not matter: their addresses do.
func (k *Kernel) learnHost(n news) {
	k.hostChanged = k.hostChanged || n.lost || n.defaultRoute
	for index, l := range n.links {
		now := hostLink{l.name, l.device.mtu, l.device.up}
		before, known := k.hostLinks[index]
		switch {
		case l.gone:
			delete(k.hostLinks, index)
		case !ours(l.name):
			k.hostLinks[index] = now
			k.hostChanged = k.hostChanged || known && before != now
		}
	}
	for at := range n.addresses {
		k.hostChanged = k.hostChanged || !at.prefix.Addr().IsLinkLocalUnicast()
	}
}

// drifted says whether an Apply would find something to look at.
func (k *Kernel) drifted() bool {
	return k.unread || k.retry || len(k.sysctls.changed)+len(k.links.changed)+len(k.addresses.changed)+
		len(k.neighbours.changed)+len(k.fdb.changed)+len(k.routes.changed) > 0
}

// settle takes all notifications and corrects the belief. The kernel queues a
// write's notification before it answers the writer, so afterwards the belief
// is as new as the last write, and writes of ours contradict nothing.
func (k *Kernel) settle() { k.learn(k.events.read()) }

func (k *Kernel) learn(n news) {
	k.learnHost(n)
	if n.lost {
		k.log.Debug("netlink notifications were lost; the kernel is read again")
		k.unread = true
	}
	if k.unread {
		return
	}
	// A device that is gone first: another may have its name by now.
	for index, l := range n.links {
		if l.gone {
			k.settleGoneLink(index, l.name)
		}
	}
	for index, l := range n.links {
		if !l.gone {
			k.settleLink(index, l)
		}
	}
	for at, exists := range n.addresses {
		k.settleAddress(at, exists)
	}
	for at, e := range n.neighbours {
		if link, ok := k.linkOfOurs(at.index); ok {
			k.neighbours.learn(plan.NeighbourKey{Link: link, IP: at.ip}, e.mac, e.permanent)
		}
	}
	for at, e := range n.fdb {
		if link, ok := k.linkOfOurs(at.index); ok && k.links.have[link].kind == plan.LinkVXLAN {
			k.fdb.learn(plan.FDBKey{Link: link, MAC: at.mac}, e.ip, e.permanent)
		}
	}
	for prefix, r := range n.routes {
		k.routes.learn(prefix, k.planned(r.routeMessage), !r.gone)
	}
	for at, value := range n.settings {
		path := k.sysctlPath(at)
		if have, ok := k.sysctls.have[path]; ok && !sameSysctl(have, value) {
			k.sysctls.learn(path, value, true)
		}
	}
	k.settleForeign(n)
}

func (k *Kernel) linkOfOurs(index int) (string, bool) {
	name := k.names[index]
	_, ok := k.links.have[name]
	return name, ok
}

// planned is a route of the kernel in the plan's words.
func (k *Kernel) planned(m routeMessage) plan.Route {
	r := m.Route
	if r.Blackhole {
		return r
	}
	r.Link = k.names[m.index]
	if m.multi || r.Link == "" {
		r.Link = "?" // equals nothing that a plan wants
	}
	return r
}

func (k *Kernel) settleGoneLink(index int, name string) {
	if k.indexes[name] == index {
		_, mine := k.links.have[name]
		delete(k.indexes, name)
		delete(k.up, name)
		k.loseLink(name, mine)
	}
	delete(k.names, index)
}

func (k *Kernel) settleLink(index int, l linkNews) {
	old, known := k.names[index]
	_, mine := k.links.have[l.name]
	if known && old != l.name { // renamed
		k.unread = true
		delete(k.indexes, old)
	}
	before, existed := k.indexes[l.name]
	wasUp := k.up[l.name]
	anew := existed && before != index
	k.names[index], k.indexes[l.name], k.up[l.name] = l.name, index, l.device.up
	if _, waits := k.waiting[l.name]; waits && (!existed || anew || wasUp != l.device.up) {
		k.retry = true
	}
	if anew || wasUp && l.wasDown {
		k.loseRoutes(l.name, mine)
	}
	if anew && mine {
		k.loseLink(l.name, mine)
	}
	_, managed := k.managed[l.name]
	_, lost := k.links.changed[l.name]
	switch {
	case managed && (mine || lost):
		k.links.learn(l.name, l.device, true)
	case mine || ours(l.name): // such as a pod's that was just attached
		k.links.set(l.name, l.device)
	}
}

// loseLink notes that a device is gone and everything on it with it.
func (k *Kernel) loseLink(name string, mine bool) {
	k.loseRoutes(name, mine)
	k.sysctls.lose(name)
	k.addresses.lose(name)
	k.neighbours.lose(name)
	k.fdb.lose(name)
	if _, managed := k.managed[name]; managed && mine {
		k.links.learn(name, device{}, false)
	} else {
		k.links.unset(name)
	}
}

// loseRoutes notes that a device is or was down: IPv4 routes through it are
// gone, of which the kernel says nothing. On a device that isn't ours, routes
// elsewhere can have gone with its addresses, too.
func (k *Kernel) loseRoutes(name string, mine bool) {
	if !mine && len(k.routes.on[name]) > 0 {
		k.unread = true
	}
	k.routes.lose(name)
}

func (k *Kernel) settleAddress(at addressAt, exists bool) {
	link := k.names[at.index]
	if exists && len(k.waiting) > 0 {
		k.retry = true // a gateway may be reached now, or a source be ours
	}
	key := plan.AddressKey{Link: link, Prefix: at.prefix}
	if _, mine := k.links.have[link]; mine {
		_, known := k.addresses.have[key]
		if known || !at.prefix.Addr().IsLinkLocalUnicast() {
			k.addresses.learn(key, struct{}{}, exists)
		}
		k.unread = k.unread || known && !exists && at.prefix.Addr().Is4()
		return
	}
	if link == "" || at.prefix.Addr().IsLinkLocalUnicast() {
		return
	}
	k.retry = true
	// IPv4 routes that prefer this source are gone and IPv6 routes have lost
	// it, of which the kernel says nothing.
	k.unread = k.unread || !exists
}

func (k *Kernel) settleForeign(n news) {
	for prefix := range n.replaced {
		if _, ok := k.routes.have[prefix]; ok {
			k.routes.learn(prefix, plan.Route{}, false)
		}
	}
	for prefix := range n.freed {
		if _, ok := k.conflicts[prefix]; ok {
			delete(k.conflicts, prefix)
			k.retry = true
		}
	}
}
