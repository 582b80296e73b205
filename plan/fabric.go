package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
)

// pool is what planning needs to know about an IPPool.
type pool struct {
	prefix      netip.Prefix
	mode        api.EncapsulationMode
	natOutgoing bool
}

// block is a claimed block.
type block struct {
	prefix netip.Prefix
	node   string
}

// fabricPlanner plans what joins nodes: the tunnel device, and for each peer the
// routes to its blocks. A peer is the unit: an event about one peer touches
// nothing of the others.
type fabricPlanner struct {
	plan   *Plan
	self   fabric.Self
	config fabric.Config

	pools    map[string]pool
	blocks   map[string]block
	byNode   map[string]map[string]struct{}       // node → names of its blocks
	blocksAt map[netip.Prefix]map[string]struct{} // prefix → names of blocks; duplicates are possible
	peers    map[string]fabric.Peer               // self too: its addresses are a node's
	problems map[string]string                    // peer → why it can't be reached

	reserved      reservations
	fromHost      []Reserved                         // what setReserved was given
	unrouted      map[string]map[netip.Prefix]string // node → its blocks without a route, and why
	overlaps      map[string]string                  // pool → what reserved prefixes it overlaps
	overlapsDirty bool

	dirty    map[string]struct{} // peers
	allDirty bool

	tunnels            []uint16 // ports on which the node receives tunnels
	planned, untracked []uint16 // those that chains were planned for
	nodeOpen           bool     // the input chain was planned without egress policy

	deviceUnits
	elements *units[ElementKey, Element]
}

func newFabricPlanner(p *Plan, shared deviceUnits, node string) *fabricPlanner {
	return &fabricPlanner{
		plan: p, self: fabric.Self{Name: node}, config: fabric.ConfigFrom(nil),
		pools: map[string]pool{}, blocks: map[string]block{}, byNode: map[string]map[string]struct{}{},
		blocksAt: map[netip.Prefix]map[string]struct{}{},
		peers:    map[string]fabric.Peer{}, problems: map[string]string{},
		unrouted: map[string]map[netip.Prefix]string{}, overlaps: map[string]string{},
		dirty: map[string]struct{}{}, allDirty: true,
		deviceUnits: shared, elements: newUnits(p.Elements),
	}
}

func (f *fabricPlanner) setUnderlay(u fabric.Underlay) {
	f.self.Underlay = u
	f.reserved.setHost(u, f.fromHost)
	f.allDirty = true
}

func (f *fabricPlanner) setReserved(r []Reserved) {
	f.fromHost = r
	f.reserved.setHost(f.self.Underlay, r)
	f.allDirty = true
}

func (f *fabricPlanner) setConfig(c *api.FabricConfiguration) {
	f.config = fabric.ConfigFrom(c)
	f.allDirty = true
}

// setPeer returns the addresses that became a node's, or no longer are.
func (f *fabricPlanner) setPeer(p fabric.Peer) (changed []netip.Addr) {
	changed = f.reserve(p.Name, p.Addrs)
	f.peers[p.Name] = p
	f.dirtySharers(p.Addrs)
	f.dirty[p.Name] = struct{}{}
	nodes := map[ElementKey]Element{}
	for _, a := range p.Addrs {
		nodes[ElementKey{setNodes + suffix(a), KeyOf(a)}] = Element{Comment: p.Name}
	}
	f.elements.replace("node/"+p.Name, nodes)
	return changed
}

func (f *fabricPlanner) deletePeer(name string) (changed []netip.Addr) {
	addrs := f.peers[name].Addrs
	changed = f.reserve(name, nil)
	delete(f.peers, name)
	f.dirtySharers(addrs)
	f.dirty[name] = struct{}{}
	f.elements.replace("node/"+name, nil)
	return changed
}

// reserve notes the addresses of a node, and marks dirty the owners of the blocks
// that contain one which is new or gone.
func (f *fabricPlanner) reserve(node string, addrs []netip.Addr) (changed []netip.Addr) {
	changed = f.reserved.setNode(node, f.peers[node].Addrs, addrs)
	f.dirtySharers(changed)
	for _, a := range changed {
		f.overlapsDirty = true
		if _, inPool := f.poolOf(netip.PrefixFrom(a, a.BitLen())); inPool {
			f.allDirty = true // see routable
		}
		for bits := range a.BitLen() + 1 {
			p, _ := a.Prefix(bits)
			for name := range f.blocksAt[p] {
				f.dirty[f.blocks[name].node] = struct{}{}
			}
		}
	}
	return changed
}

func (f *fabricPlanner) setPool(p *api.IPPool) error {
	prefix, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil {
		f.deletePool(p.Name)
		return fmt.Errorf("pool %s: %w", p.Name, err)
	}
	f.pools[p.Name] = pool{prefix.Masked(), p.Spec.VXLANMode, p.Spec.NATOutgoing}
	f.allDirty = true
	return nil
}

func (f *fabricPlanner) deletePool(name string) {
	delete(f.pools, name)
	f.allDirty = true
}

func (f *fabricPlanner) setBlock(b *api.IPAMBlock) error {
	f.deleteBlock(b.Name)
	prefix, err := netip.ParsePrefix(b.Spec.CIDR)
	if err != nil {
		return fmt.Errorf("block %s: %w", b.Name, err)
	}
	node, ok := b.Owner()
	if !ok {
		return fmt.Errorf("block %s: affinity %q names no node", b.Name, b.Spec.Affinity)
	}
	f.blocks[b.Name] = block{prefix.Masked(), node}
	addTo(f.byNode, node, b.Name)
	addTo(f.blocksAt, prefix.Masked(), b.Name)
	f.dirty[node] = struct{}{}
	return nil
}

func (f *fabricPlanner) deleteBlock(name string) {
	old, ok := f.blocks[name]
	if !ok {
		return
	}
	delete(f.blocks, name)
	removeFrom(f.byNode, old.node, name)
	removeFrom(f.blocksAt, old.prefix, name)
	f.dirty[old.node] = struct{}{}
}

func (f *fabricPlanner) flush() {
	if f.allDirty || f.overlapsDirty {
		f.findOverlaps()
		f.overlapsDirty = false
	}
	if f.allDirty {
		f.planSelf()
		for name := range f.peers {
			f.dirty[name] = struct{}{}
		}
		for name := range f.byNode {
			f.dirty[name] = struct{}{}
		}
		f.allDirty = false
	}
	for name := range f.dirty {
		if name == f.self.Name {
			f.planOwnBlocks()
		} else {
			f.planPeer(name)
		}
	}
	clear(f.dirty)
	f.planTunnels()
}

// udp is IANA's protocol number.
const udp uint8 = 17

// planSelf plans what depends on this node, the configuration and the pools
// alone.
func (f *fabricPlanner) planSelf() {
	links := map[string]Link{}
	sysctls := map[string]string{}
	addresses := map[AddressKey]struct{}{}
	gateway := netip.MustParseAddr(PodGateway4)
	f.tunnels = nil
	for _, d := range fabric.Devices(f.self, f.config) {
		f.tunnels = append(f.tunnels, uint16(d.Port))
		// Where the reverse path is another device's, loose filtering still
		// drops what comes in on a device without an address. This one is on
		// no wire; it is the next hop of pods, so that ARP for it is answered
		// even on a node without a default route, which proxy ARP needs.
		addresses[AddressKey{d.Name, netip.PrefixFrom(gateway, gateway.BitLen())}] = struct{}{}
		links[d.Name] = Link{Kind: LinkVXLAN, MTU: d.MTU, MAC: d.MAC, VNI: d.VNI, Port: d.Port, Local: d.Local, Underlay: d.Underlay}
		sysctls["net/ipv4/conf/"+d.Name+"/rp_filter"] = "2"
	}
	if link := f.self.Underlay.Link; link != "" {
		// A pod's packets to a node travel bare while the answers take the
		// tunnel, so the reverse path may differ: loose, not strict (RFC 3704).
		sysctls["net/ipv4/conf/"+link+"/rp_filter"] = "2"
	}

	var all, nat []netip.Prefix
	for _, p := range f.pools {
		all = append(all, p.prefix)
		if p.natOutgoing {
			nat = append(nat, p.prefix)
		}
		if p.prefix.Addr().Is6() {
			sysctls["net/ipv6/conf/all/forwarding"] = "1"
			if link := f.self.Underlay.Link; link != "" {
				// Forwarding makes the kernel ignore router advertisements,
				// and with them the node's own default route, unless 2.
				sysctls["net/ipv6/conf/"+link+"/accept_ra"] = "2"
			}
		}
	}
	f.links.replace(selfUnit, links)
	f.addresses.replace(selfUnit, addresses)
	f.sysctls.replace(selfUnit, sysctls)
	f.elements.replace("pools", rangeElements(setPools, all))
	f.elements.replace("nat", rangeElements(setNATOutgoing, nat))
}

// planTunnels plans the chains that know tunnels by their ports. Their packets
// are untracked while the node sends such itself.
func (f *fabricPlanner) planTunnels() {
	open := f.config.EgressToOwnNode == api.AllowEgressToOwnNode
	if !slices.Equal(f.planned, f.tunnels) || f.nodeOpen != open {
		f.planned, f.nodeOpen = f.tunnels, open
		planNodeChains(f.plan, f.planned, open)
	}
	var sent []uint16
	if f.plan.FDB.Len() > 0 {
		sent = f.tunnels
	}
	if !slices.Equal(f.untracked, sent) {
		f.untracked = sent
		planUntracked(f.plan, f.untracked)
	}
}

// planOwnBlocks drops what is sent to addresses of ours that no pod has: a
// default route would send them back to where they came from.
func (f *fabricPlanner) planOwnBlocks() {
	routes := map[netip.Prefix]Route{}
	var all []netip.Prefix
	delete(f.unrouted, f.self.Name)
	for name := range f.byNode[f.self.Name] {
		p := f.blocks[name].prefix
		if !f.routable(f.self.Name, p) {
			continue
		}
		if all = append(all, p); !p.IsSingleIP() {
			routes[p] = Route{Blackhole: true}
		}
	}
	f.routes.replace(nodeUnit(f.self.Name), routes)
	f.elements.replace("own blocks", rangeElements(setOwnBlocks, all))
}

func (f *fabricPlanner) planPeer(name string) {
	routes := map[netip.Prefix]Route{}
	neighbours := map[NeighbourKey]MAC{}
	fdb := map[FDBKey]netip.Addr{}
	problems := map[string]struct{}{} // blocks may have the same

	peer, known := f.reachedBy(name)
	delete(f.unrouted, name)
	for blockName := range f.byNode[name] {
		b := f.blocks[blockName]
		if !f.routable(name, b.prefix) || !known || f.self.Underlay.Link == "" {
			continue
		}
		v6 := b.prefix.Addr().Is6()
		path, err := fabric.Choose(f.self, f.config, peer, f.modeOf(b.prefix), v6)
		if err != nil {
			problems[err.Error()] = struct{}{}
			continue
		}
		r := Route{Link: path.Link, Gateway: path.NextHop, OnLink: path.OnLink}
		r.Source, _ = f.self.Underlay.Addr(v6)
		routes[b.prefix] = r
		if path.Tunnel() {
			neighbours[NeighbourKey{path.Link, path.NextHop}] = path.MAC
			fdb[FDBKey{path.Link, path.MAC}] = path.Remote
		}
	}
	if len(problems) > 0 {
		f.problems[name] = strings.Join(slices.Sorted(maps.Keys(problems)), "; ")
	} else {
		delete(f.problems, name)
	}
	f.routes.replace(nodeUnit(name), routes)
	f.neighbours.replace(nodeUnit(name), neighbours)
	f.fdb.replace(nodeUnit(name), fdb)
}

// routable says whether a route to a node's block leaves every reserved prefix
// reachable. A block that is not routable is noted with the reason.
//
// A part of a wider network may be set aside for pods, as 10.244.0.0/16 where the
// nodes' own network is 10.0.0.0/8: then no node has an address in the pool.
func (f *fabricPlanner) routable(node string, block netip.Prefix) bool {
	what, captured, part := f.reserved.overlaps(block)
	if pool, ok := f.poolOf(block); ok && part && !captured {
		_, captured, _ = f.reserved.overlaps(pool.prefix)
	}
	if captured {
		if f.unrouted[node] == nil {
			f.unrouted[node] = map[netip.Prefix]string{}
		}
		f.unrouted[node][block] = what
	}
	return !captured
}

// findOverlaps compares the pools with the reserved prefixes.
func (f *fabricPlanner) findOverlaps() {
	clear(f.overlaps)
	for name, p := range f.pools {
		if what, _, _ := f.reserved.overlaps(p.prefix); what != "" {
			f.overlaps[name] = fmt.Sprintf("%s contains or is part of %s", p.prefix, what)
		}
	}
}

// overlapProblems lists the pools that overlap reserved prefixes, and the blocks
// that are not routed for that reason.
func (f *fabricPlanner) overlapProblems() []Problem {
	var out []Problem
	for name, what := range f.overlaps {
		out = append(out, Problem{string(health.PoolOverlap), "IPPool " + name, what})
	}
	for node, blocks := range f.unrouted {
		for p, what := range blocks {
			out = append(out, Problem{string(health.PoolOverlap), "IPAMBlock " + p.String(),
				fmt.Sprintf("no route to this block of %s: it contains or is part of %s", node, what)})
		}
	}
	return out
}

// modeOf is the encapsulation mode of the pool that the prefix is part of.
func (f *fabricPlanner) modeOf(prefix netip.Prefix) api.EncapsulationMode {
	p, _ := f.poolOf(prefix)
	return p.mode
}

// poolOf is the pool that the prefix is part of. Where pools lie within each other,
// the smallest counts; of those with one range, the one whose name comes first.
func (f *fabricPlanner) poolOf(prefix netip.Prefix) (of pool, ok bool) {
	first := ""
	for name, p := range f.pools {
		if p.prefix.Bits() > prefix.Bits() || !p.prefix.Contains(prefix.Addr()) {
			continue
		}
		if !ok || p.prefix.Bits() > of.prefix.Bits() || p.prefix.Bits() == of.prefix.Bits() && name < first {
			of, ok, first = p, true, name
		}
	}
	return of, ok
}

// podMTU is the MTU of this node's pods.
func (f *fabricPlanner) podMTU() int {
	var modes []api.EncapsulationMode
	for _, p := range f.pools {
		modes = append(modes, p.mode)
	}
	return fabric.PodMTU(f.self, f.config, modes)
}
