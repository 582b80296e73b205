package plan

import (
	"net/netip"
	"time"

	"github.com/twill-net/twill/fabric"
)

// Contender is another Node that has an address of this node.
type Contender struct {
	Node     string
	Addr     netip.Addr
	Claim    time.Time
	Precedes bool // packets to the address go to it, unless another one precedes it
}

// Contenders lists the other Nodes that have an address of this node, by address and
// name, and the claim of this node.
func (pl *Planner) Contenders() (others []Contender, claim time.Time) {
	self := pl.fabric.peers[pl.self]
	for _, a := range self.Addrs {
		for _, n := range pl.fabric.reserved.nodesAt(a) {
			if n.node != pl.self {
				other := pl.fabric.peers[n.node]
				others = append(others, Contender{n.node, a, other.Claim, other.Precedes(self)})
			}
		}
	}
	return others, self.Claim
}

// dirtySharers marks dirty the nodes that have one of the addresses.
func (f *fabricPlanner) dirtySharers(addrs []netip.Addr) {
	for _, a := range addrs {
		for _, n := range f.reserved.nodesAt(a) {
			f.dirty[n.node] = struct{}{}
		}
	}
}

// reachedBy is the peer through which a node's blocks are reached: of several with
// one address, the one that precedes the others, so that all agree on what stands
// for the address in the tunnel. It is unknown while this node has the address.
func (f *fabricPlanner) reachedBy(name string) (peer fabric.Peer, known bool) {
	peer, known = f.peers[name]
	for _, a := range peer.Addrs {
		if own, ok := f.self.Underlay.Addr(a.Is6()); ok && own == a {
			return peer, false
		}
	}
	for _, a := range f.peers[name].Addrs {
		for _, n := range f.reserved.nodesAt(a) {
			if n.node == f.self.Name {
				return peer, false
			}
			if other := f.peers[n.node]; other.Precedes(peer) {
				peer = other
			}
		}
	}
	return peer, known
}
