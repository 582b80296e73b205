package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/store"
)

// underlay is what the loop knows of the node's own connection to the others.
type underlay struct {
	found fabric.Underlay // empty: none yet
	// told are the addresses to which the others send, where they are not this
	// agent's to say; known: the node's object was seen.
	told  []netip.Addr
	known bool
	lost  bool      // the node's address is nowhere now
	gone  time.Time // since when, where this agent chooses it
	// reserved is what the planner was given.
	reserved []plan.Reserved
}

// reservedBy lists what the host needs without the plan's routes: what its devices
// say, and the servers of the store.
func (a *Agent) reservedBy(host route.Host) []plan.Reserved {
	out := host.Reserved()
	if remote, ok := a.store.(store.Remote); ok {
		for _, addr := range remote.Addresses() {
			out = append(out, plan.Reserved{Prefix: netip.PrefixFrom(addr, addr.BitLen()), What: "the address of the store"})
		}
	}
	return out
}

// detectUnderlay looks for the device that has the node's address. The configuration
// decides the address, else the kubelet; a node may be known by an address that is
// translated before it comes here. Otherwise the present address is kept, and one
// is chosen only where there is none.
func (a *Agent) detectUnderlay(host route.Host) (fabric.Underlay, error) {
	if len(a.config.NodeIPs) > 0 {
		return host.Underlay(a.config.NodeIPs)
	}
	if len(a.underlay.told) > 0 {
		u, err := host.Underlay(a.underlay.told)
		if !errors.Is(err, route.ErrNoAddress) {
			return u, err
		}
	}
	var present []netip.Addr
	for _, p := range a.underlay.found.Prefixes {
		present = append(present, p.Addr())
	}
	if present == nil && host.Tunnel.IsValid() {
		present = []netip.Addr{host.Tunnel}
	}
	u, err := host.Keep(present)
	missing := slices.DeleteFunc(slices.Clone(present), func(own netip.Addr) bool { now, ok := u.Addr(own.Is6()); return ok && now == own })
	if err == nil && len(missing) == 0 {
		a.underlay.gone = time.Time{}
		return u, nil
	}
	if a.underlay.gone.IsZero() {
		a.underlay.gone = time.Now()
	}
	switch {
	case len(a.underlay.found.Prefixes) > 0 && time.Since(a.underlay.gone) < addressPatience:
		return u, fmt.Errorf("%w %s; another is chosen if it stays away", route.ErrNoAddress, missing[0])
	case errors.Is(err, route.ErrNoAddress):
		return host.Underlay(nil)
	}
	return u, err
}

// addressPatience is how long the node's address may be gone before another one is
// chosen: the programs that configure networks take addresses away and give them back.
const addressPatience = 3 * time.Second

// followUnderlay has the plan follow the node's address and the device that has it,
// which may change while the agent runs, its name and MTU too. While there is none all stays as it was. It runs on the loop.
func (a *Agent) followUnderlay() {
	host, err := route.ReadHost()
	if err == nil {
		a.reserve(host)
	}
	var now fabric.Underlay
	if err == nil {
		now, err = a.detectUnderlay(host)
	}
	a.underlay.lost = err != nil
	if err != nil {
		a.health.Set(health.NodeAddressLost, "", err.Error())
		return
	}
	a.health.Clear(health.NodeAddressLost, "")
	if now.Equal(a.underlay.found) {
		return
	}
	a.log.Warn("the node is connected to the others in another way", "was", a.underlay.found, "is", now)
	a.underlay.found = now
	a.planner.SetUnderlay(now)
	a.publishNodeOnChange()
}

// reserve has the plan keep its routes away from what the host needs.
func (a *Agent) reserve(host route.Host) {
	if now := a.reservedBy(host); !slices.Equal(now, a.underlay.reserved) {
		a.underlay.reserved = now
		a.planner.SetReserved(now)
	}
}

// nodeTold takes in what the others know of this node. It runs on the loop.
func (a *Agent) nodeTold(n *corev1.Node) {
	if a.publisher.orchestrated {
		a.underlay.told = api.NodeAddresses(n)
	}
	a.underlay.known = true
	a.followUnderlay()
	a.publishNodeOnChange()
}
