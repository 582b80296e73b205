package agent

import (
	"errors"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
)

// underlay is what the loop knows of the node's own connection to the others.
type underlay struct {
	found fabric.Underlay // empty: none yet
	// told are the addresses to which the others send, where they are not this
	// agent's to say; known: the node's object was seen.
	told  []netip.Addr
	known bool
	lost  bool // the node's address is nowhere now
}

// detectUnderlay looks for the device that has the node's address: the one that is
// configured, else the one that the others are told, else that of the default
// route. A node may be known by an address that is translated before it comes here.
func (a *Agent) detectUnderlay() (fabric.Underlay, error) {
	if len(a.config.NodeIPs) == 0 && len(a.underlay.told) > 0 {
		u, err := route.DetectUnderlay(a.underlay.told)
		if !errors.Is(err, route.ErrNoAddress) {
			return u, err
		}
	}
	return route.DetectUnderlay(a.config.NodeIPs)
}

// followUnderlay has the plan follow the node's address, which may change while the
// agent runs. While there is none all stays as it was. It runs on the loop.
func (a *Agent) followUnderlay() {
	now, err := a.detectUnderlay()
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

// nodeTold takes in what the others know of this node. It runs on the loop.
func (a *Agent) nodeTold(n *corev1.Node) {
	if a.publisher.orchestrated {
		a.underlay.told = api.NodeAddresses(n)
	}
	a.underlay.known = true
	a.followUnderlay()
	a.publishNodeOnChange()
}
