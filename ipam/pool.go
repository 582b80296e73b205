package ipam

import (
	"fmt"
	"hash/fnv"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/api/selector"
)

// Pool is an IPPool in parsed form. The zero value is no pool; see ParsePool.
type Pool struct {
	Name      string
	Prefix    netip.Prefix // masked
	BlockBits int          // prefix length of a block
	Disabled  bool
	Nodes     selector.Selector // over node labels
}

// The block sizes that are allowed are those of projectcalico.org/v3: at most
// 4096 addresses, so that a block's state is small.
const (
	defaultBlockBits4 = 26
	defaultBlockBits6 = 122
	maxBlockShift     = 12
)

// ParsePool reads an IPPool. A pool that is smaller than the default block is
// one block.
func ParsePool(p *api.IPPool) (Pool, error) {
	prefix, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil {
		return Pool{}, fmt.Errorf("pool %s: cidr %q is not a prefix", p.Name, p.Spec.CIDR)
	}
	if prefix.Addr().Is4In6() || prefix != prefix.Masked() {
		return Pool{}, fmt.Errorf("pool %s: cidr %s is not in canonical form: write %s", p.Name, prefix, prefix.Masked())
	}
	length := prefix.Addr().BitLen()
	block := p.Spec.BlockSize
	if block == 0 {
		block = defaultBlockBits4
		if length == 128 {
			block = defaultBlockBits6
		}
		block = max(block, prefix.Bits())
	}
	if block < length-maxBlockShift || block > length {
		return Pool{}, fmt.Errorf("pool %s: block size %d is not between %d and %d", p.Name, block, length-maxBlockShift, length)
	}
	if block < prefix.Bits() {
		return Pool{}, fmt.Errorf("pool %s: a block of /%d does not fit in %s", p.Name, block, prefix)
	}
	nodes, err := selector.ParseSelector(p.Spec.NodeSelector)
	if err != nil {
		return Pool{}, fmt.Errorf("pool %s: nodeSelector: %w", p.Name, err)
	}
	return Pool{Name: p.Name, Prefix: prefix, BlockBits: block, Disabled: p.Spec.Disabled, Nodes: nodes}, nil
}

// Ranges are what somebody else has given a node, such as Kubernetes with
// spec.podCIDRs: it claims blocks in no other part of the pools.
type Ranges struct {
	Prefixes []netip.Prefix
	// Only: without a range inside a pool the node has no addresses of that family.
	// Else it then has whole pools.
	Only bool
}

// within is what of the pools lies in the ranges.
func (r Ranges) within(pools []Pool) []Pool {
	var out []Pool
	for _, f := range []int{4, 6} {
		var whole, parts []Pool
		for _, p := range pools {
			if family(p.Prefix.Addr()) != f {
				continue
			}
			whole = append(whole, p)
			for _, prefix := range r.Prefixes {
				if !p.Prefix.Overlaps(prefix) {
					continue
				}
				part := p
				if prefix.Bits() > p.Prefix.Bits() {
					part.Prefix = prefix.Masked()
					part.BlockBits = max(p.BlockBits, prefix.Bits())
				}
				parts = append(parts, part)
			}
		}
		if len(parts) > 0 || r.Only {
			out = append(out, parts...)
		} else {
			out = append(out, whole...)
		}
	}
	slices.SortFunc(out, func(x, y Pool) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// Blocks is the number of blocks in the pool, a power of two. Of a pool with
// more than 2^32 only so many are used.
func (p Pool) Blocks() uint64 { return 1 << min(p.BlockBits-p.Prefix.Bits(), 32) }

// Block is the i-th block, i < Blocks().
func (p Pool) Block(i uint64) netip.Prefix {
	shift := p.Prefix.Addr().BitLen() - p.BlockBits
	return netip.PrefixFrom(add(p.Prefix.Addr(), i<<shift), p.BlockBits)
}

// hasBlock says whether the prefix is a block of the pool.
func (p Pool) hasBlock(prefix netip.Prefix) bool {
	return prefix.Bits() == p.BlockBits && p.Prefix.Contains(prefix.Addr())
}

// BlockOf is the block that an address of the pool is in.
func (p Pool) BlockOf(a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(a, p.BlockBits).Masked()
}

// Candidates goes through all blocks of the pool, each once, in an order of
// the node's own: where it starts and how far it steps come from the node's
// name, so that nodes that claim at the same time rarely want the same block,
// and a node that lost its state comes back to the same ones.
func (p Pool) Candidates(node string) iter.Seq[netip.Prefix] {
	h := fnv.New64a()
	h.Write([]byte(p.Prefix.String() + " " + node))
	seed, n := h.Sum64(), p.Blocks()
	// An odd step visits every index of a power of two.
	start, step := seed&(n-1), (seed>>32|1)&(n-1)
	return func(yield func(netip.Prefix) bool) {
		for i := range n {
			if !yield(p.Block((start + i*step) & (n - 1))) {
				return
			}
		}
	}
}

// Reserved says whether the address is never given out: the first of a pool
// (the network's address; in IPv6 the subnet-router anycast address of RFC 4291
// §2.6.1), and in IPv4 the last (the broadcast address); of IPv4 pools of a /24
// and more also every .0 and .255, which software that thinks in classes takes
// for such. Pools of one or two addresses have none (RFC 3021, RFC 6164).
func (p Pool) Reserved(a netip.Addr) bool {
	host := p.Prefix.Addr().BitLen() - p.Prefix.Bits()
	switch {
	case host < 2 || !p.Prefix.Contains(a):
		return false
	case a.Is4() && host >= 8:
		octet := a.As4()[3]
		return octet == 0 || octet == 255
	}
	return a == p.Prefix.Addr() || a.Is4() && a == add(p.Prefix.Addr(), 1<<host-1)
}

// reservedIn is the number of reserved addresses in a block of the pool.
func (p Pool) reservedIn(block netip.Prefix) int {
	if n := size(block); block.Addr().Is4() && n > 256 {
		return int(n / 128)
	}
	n := 0
	first, last := block.Addr(), add(block.Addr(), size(block)-1)
	for _, edge := range slices.Compact([]netip.Addr{first, last}) {
		if p.Reserved(edge) {
			n++
		}
	}
	return n
}

// BlockName is the name of a block's object: "10-244-0-64-26". IPv6 addresses
// are written in full, since a name can't begin with the "-" of "::".
func BlockName(block netip.Prefix) string {
	text := block.Addr().StringExpanded()
	return strings.NewReplacer(".", "-", ":", "-").Replace(text) + fmt.Sprintf("-%d", block.Bits())
}

// size is the number of addresses in a block.
func size(block netip.Prefix) uint64 { return 1 << (block.Addr().BitLen() - block.Bits()) }

// family is 4 or 6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// add is the address n further on, modulo the size of the address space.
func add(a netip.Addr, n uint64) netip.Addr {
	b := a.As16()
	var hi, lo uint64
	for i := range 8 {
		hi, lo = hi<<8|uint64(b[i]), lo<<8|uint64(b[i+8])
	}
	lo, carry := bits.Add64(lo, n, 0)
	hi += carry
	for i := range 8 {
		b[i], b[i+8] = byte(hi>>(56-8*i)), byte(lo>>(56-8*i))
	}
	sum := netip.AddrFrom16(b)
	if a.Is4() {
		return sum.Unmap()
	}
	return sum
}
