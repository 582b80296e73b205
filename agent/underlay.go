package agent

import (
	"errors"
	"net/netip"
	"slices"

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
	lost  bool // the node's address is nowhere now
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

// detectUnderlay looks for the device that has the node's address: the one that is
// configured, else the one that the others are told, else that of the default
// route. A node may be known by an address that is translated before it comes here.
func (a *Agent) detectUnderlay(host route.Host) (fabric.Underlay, error) {
	if len(a.config.NodeIPs) == 0 && len(a.underlay.told) > 0 {
		u, err := host.Underlay(a.underlay.told)
		if !errors.Is(err, route.ErrNoAddress) {
			return u, err
		}
	}
	return host.Underlay(a.config.NodeIPs)
}

// followUnderlay has the plan follow the node's address, which may change while the
// agent runs. While there is none all stays as it was. It runs on the loop.
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
