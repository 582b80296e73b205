package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/twill-net/twill/api"
)

func measureVXLAN(quick bool) (figures, error)       { return measurePeers("vxlan", quick) }
func measureHostGateway(quick bool) (figures, error) { return measurePeers("host-gw", quick) }

// measurePeers has a node learn of the other nodes of a cluster.
func measurePeers(backend string, quick bool) (figures, error) {
	peers := 1000
	if quick {
		peers = 100
	}
	n, err := newScaleNode()
	if err != nil {
		return nil, err
	}
	self := addrOf("172.20.0.1", 0)
	if err := n.underlay(self); err != nil {
		return nil, err
	}
	f, found := &feeder{node: n}, figures{}
	if err := n.put(poolOf("10.0.0.0/8"), preference(backend)); err != nil {
		return nil, err
	}
	prefix := func(i int) netip.Prefix { return netip.PrefixFrom(addrOf("10.0.0.0", 256*i), 24) }
	each := func(put func(api.Object) error) error {
		for i := range peers + 1 {
			name := n.name
			if i > 0 {
				name = fmt.Sprintf("peer-%d", i)
			}
			object, err := nodeOf(name, addrOf("172.20.0.1", i))
			if err != nil {
				return err
			}
			if err := errors.Join(put(object), put(blockOf("block-"+name, name, prefix(i)))); err != nil {
				return err
			}
		}
		return nil
	}
	if err := f.cold(each, found, "cold"); err != nil {
		return nil, err
	}
	found["heap"], found["routes"] = liveHeap(), float64(n.planner.Flush().Routes.Len())
	// A peer gets a second block.
	changes, err := f.changes(200, func(i int) api.Object {
		return blockOf(fmt.Sprintf("more-%d", i), fmt.Sprintf("peer-%d", 1+i%peers), prefix(peers+1+i))
	})
	found["change"] = median(changes)
	return found, err
}

// underlay gives the node a device that leads to the others. There is nobody
// behind it.
func (n *node) underlay(addr netip.Addr) error {
	far, err := newNamespace("far")
	if err != nil {
		return err
	}
	if err := wire(n.namespace, far, "eth0", "eth0", 1500); err != nil {
		return err
	}
	if err := n.address("eth0", netip.PrefixFrom(addr, 16)); err != nil {
		return err
	}
	return n.join(addr)
}
