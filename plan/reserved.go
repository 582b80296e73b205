package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/fabric"
)

// Reserved is a prefix that the node must reach by routes that are not the
// plan's: a network of one of the host's devices, the default gateway, the store.
type Reserved struct {
	Prefix netip.Prefix // masked
	What   string       // for messages, such as "the network of eth0"
	// Local marks an address of the host itself. The kernel's local table comes
	// before every route, so a route that contains it takes nothing from the host
	// and is planned; the overlap is reported.
	Local bool
}

// nodeAddress is an address of a node of the cluster, this one included.
type nodeAddress struct {
	addr netip.Addr
	node string
}

func (a nodeAddress) compare(b nodeAddress) int {
	return cmp.Or(a.addr.Compare(b.addr), strings.Compare(a.node, b.node))
}

// reservations finds the reserved prefixes that overlap a prefix. The time for
// that does not grow with the number of nodes.
type reservations struct {
	nodes    []nodeAddress // sorted
	host     []Reserved    // sorted by prefix, without duplicates
	byPrefix map[netip.Prefix]Reserved
}

// setNode replaces a node's addresses and returns those that were added or
// removed.
func (r *reservations) setNode(name string, before, after []netip.Addr) (changed []netip.Addr) {
	for _, a := range before {
		if !slices.Contains(after, a) {
			i, found := slices.BinarySearchFunc(r.nodes, nodeAddress{a, name}, nodeAddress.compare)
			if found {
				r.nodes = slices.Delete(r.nodes, i, i+1)
			}
			changed = append(changed, a)
		}
	}
	for _, a := range after {
		if !slices.Contains(before, a) {
			i, found := slices.BinarySearchFunc(r.nodes, nodeAddress{a, name}, nodeAddress.compare)
			if !found {
				r.nodes = slices.Insert(r.nodes, i, nodeAddress{a, name})
			}
			changed = append(changed, a)
		}
	}
	return changed
}

// nodesAt lists the nodes that have an address, by name.
func (r *reservations) nodesAt(a netip.Addr) []nodeAddress {
	first, _ := slices.BinarySearchFunc(r.nodes, nodeAddress{addr: a}, nodeAddress.compare)
	last := first
	for last < len(r.nodes) && r.nodes[last].addr == a {
		last++
	}
	return r.nodes[first:last]
}

// setHost replaces what the host reserves. The networks of the underlay's
// addresses are always reserved: nodes that are not in the store yet are there.
func (r *reservations) setHost(underlay fabric.Underlay, reserved []Reserved) {
	r.byPrefix = map[netip.Prefix]Reserved{}
	for _, one := range reserved {
		if before, ok := r.byPrefix[one.Prefix]; !ok || before.Local {
			r.byPrefix[one.Prefix] = one
		}
	}
	for _, p := range underlay.Prefixes {
		if !p.IsSingleIP() {
			r.byPrefix[p.Masked()] = Reserved{Prefix: p.Masked(), What: "the network of " + underlay.Link}
		}
	}
	r.host = r.host[:0]
	for _, one := range r.byPrefix {
		r.host = append(r.host, one)
	}
	slices.SortFunc(r.host, func(a, b Reserved) int { return a.Prefix.Compare(b.Prefix) })
}

// networks lists the prefixes that the host reaches by routes of its own.
func (r *reservations) networks() []netip.Prefix {
	out := make([]netip.Prefix, len(r.host))
	for i, one := range r.host {
		out[i] = one.Prefix
	}
	return out
}

// namedOverlaps is how many overlaps a message names.
const namedOverlaps = 3

// overlaps describes what p has in common with reserved prefixes; empty: nothing.
// captured is whether a route to p would lead packets away from a node or from all
// of a reserved prefix; part whether p is a part of a network that is wider.
func (r *reservations) overlaps(p netip.Prefix) (what string, captured, part bool) {
	var found []string
	note := func(text string) {
		if len(found) < namedOverlaps {
			found = append(found, text)
		}
	}
	first, _ := slices.BinarySearchFunc(r.nodes, nodeAddress{addr: p.Addr()}, nodeAddress.compare)
	for _, n := range r.nodes[first:] {
		if !p.Contains(n.addr) || len(found) == namedOverlaps {
			break
		}
		note(fmt.Sprintf("%s of node %s", n.addr, n.node))
		captured = true
	}
	for bits := 1; bits < p.Bits(); bits++ {
		wider, _ := p.Addr().Prefix(bits)
		if one, ok := r.byPrefix[wider]; ok {
			note(fmt.Sprintf("%s, %s", one.Prefix, one.What))
			part = true
		}
	}
	first, _ = slices.BinarySearchFunc(r.host, p, func(one Reserved, p netip.Prefix) int { return one.Prefix.Compare(p) })
	for _, one := range r.host[first:] {
		if !p.Contains(one.Prefix.Addr()) || captured && len(found) == namedOverlaps {
			break
		}
		note(fmt.Sprintf("%s, %s", one.Prefix, one.What))
		captured = captured || !one.Local
	}
	return strings.Join(found, "; "), captured, part
}

// holds says whether an address is reserved by itself, and for what: a route to a
// pod with this address would lead packets away from it.
func (r *reservations) holds(a netip.Addr) (what string, reserved bool) {
	if nodes := r.nodesAt(a); len(nodes) > 0 {
		return "the address of node " + nodes[0].node, true
	}
	one, ok := r.byPrefix[netip.PrefixFrom(a, a.BitLen())]
	return one.What, ok && !one.Local
}
