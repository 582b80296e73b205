package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/ipam"
)

// surveyBlock notes which addresses of a block that is new to this node are in use
// without the journal's knowledge: by pods in the store, such as those of an
// earlier installation, and on this host.
func (a *Agent) surveyBlock(ctx context.Context, block netip.Prefix) error {
	return a.onLoop(ctx, func() {
		for key, addrs := range a.planner.RemotePods(block) {
			a.ipam.Hold(ipam.Holder{Pod: key}, addrs)
		}
		for _, w := range a.podsHere.all() {
			a.ipam.Hold(ipam.Holder{Pod: api.KeyOf(w)}, addressesOf(w))
		}
		for node, addrs := range a.nodes {
			a.ipam.Hold(nodeHolder(node), addrs)
		}
		a.surveyHost()
	})
}

// holdNode keeps a node's addresses from pods, wherever the node is. None: the node
// is gone. It runs on the loop.
func (a *Agent) holdNode(node string, addrs []netip.Addr) {
	if len(addrs) == 0 {
		delete(a.nodes, node)
	} else {
		a.nodes[node] = addrs
	}
	a.ipam.Hold(nodeHolder(node), addrs)
}

func nodeHolder(node string) ipam.Holder { return ipam.Holder{Host: "node " + node} }

// surveyHost notes which addresses of this node's blocks something on the host has
// that is not Twill's. It runs on the loop.
func (a *Agent) surveyHost() {
	var blocks []netip.Prefix
	for _, b := range a.ipam.Blocks() {
		blocks = append(blocks, b.Prefix)
	}
	if len(blocks) == 0 {
		return
	}
	found, err := route.InUse(blocks)
	if err != nil {
		a.log.Warn("can't tell which addresses of this node's blocks are in use on the host; those that were found before count", "error", err)
		return
	}
	for by, addrs := range found {
		h := ipam.Holder{Host: by}
		if _, known := a.onHost[h]; !known {
			a.log.Warn("addresses of this node's blocks are in use on the host; no pod gets them", "by", by, "addresses", addrs)
			a.onHost[h] = struct{}{}
		}
		a.ipam.Hold(h, addrs)
	}
	for h := range maps.Clone(a.onHost) {
		if _, still := found[h.Host]; !still {
			delete(a.onHost, h)
			a.ipam.Hold(h, nil)
		}
	}
}

// troubled are pods without an interface. It belongs to the loop.
type troubled struct {
	missing map[string]string        // by name: why the interface can't be made again
	cutOff  map[api.Key][]netip.Addr // addresses of pods that this installation never attached
}

// noteCutOff finds a pod of this node that has addresses in the store and no
// interface: another network or an earlier installation of Twill attached it. It is
// judged when the store first tells of these addresses: later, a pod that is being
// deleted has no interface for a while either. It runs on the loop.
//
// Where the runtime alone makes pods, the publisher deletes such endpoints.
func (a *Agent) noteCutOff(w *api.WorkloadEndpoint) {
	if !a.publisher.orchestrated {
		return
	}
	key := api.KeyOf(w)
	if old, ok := a.podsHere.get(key); ok && old.UID == w.UID && slices.Equal(old.Spec.IPNetworks, w.Spec.IPNetworks) {
		return
	}
	delete(a.troubled.cutOff, key)
	unknown := slices.DeleteFunc(addressesOf(w), a.ipam.Journaled)
	if len(unknown) == 0 {
		return
	}
	if a.troubled.cutOff == nil {
		a.troubled.cutOff = map[api.Key][]netip.Addr{}
	}
	a.troubled.cutOff[key] = unknown
}

// reportTroubled sets the condition of pods without an interface. It runs on the
// loop.
func (a *Agent) reportTroubled() {
	details := maps.Clone(a.troubled.missing)
	for key, addrs := range a.troubled.cutOff {
		if !slices.ContainsFunc(addrs, func(addr netip.Addr) bool { return !a.ipam.Journaled(addr) }) {
			delete(a.troubled.cutOff, key) // attached meanwhile
			continue
		}
		if details == nil {
			details = map[string]string{}
		}
		details[key.String()] = fmt.Sprintf("has %s and no interface: another network or an earlier installation attached it", strings.Trim(fmt.Sprint(addrs), "[]"))
	}
	a.health.Replace(health.PodInterfaceMissing, details)
}
