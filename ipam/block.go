package ipam

import (
	"net/netip"
	"slices"
	"time"
)

// freed is an address that was given back. Numbers grow with time.
type freed struct {
	number  uint64
	address netip.Addr
}

// block is one of the node's blocks with the addresses that are free in it.
type block struct {
	prefix netip.Prefix
	// confirmed says that the store knows the block as ours. Blocks of a
	// journal that was written before the last boot are not, at first: while
	// the machine was down somebody may have given them to another node.
	confirmed bool
	// pool is where new addresses come from; nil while no enabled pool that
	// selects the node contains the block.
	pool *Pool

	used     int
	reserved int
	held     int       // neither used nor reserved, and not to be given out; see Hold
	unneeded time.Time // since when; zero: it is needed
	next     uint64    // no ordinal below is free and never used
	freed    []freed   // oldest first
}

// usable says whether new addresses may come from the block.
func (b *block) usable() bool { return b.confirmed && b.pool != nil }

// free is the number of addresses that can still be given out.
func (b *block) free() int { return int(size(b.prefix)) - b.used - b.reserved - b.held }

// fresh finds an address that was never used since the block was claimed. It
// only looks; taken says which addresses are used, held or were freed.
func (b *block) fresh(taken func(netip.Addr) bool) (netip.Addr, bool) {
	for ; b.next < size(b.prefix); b.next++ {
		a := add(b.prefix.Addr(), b.next)
		if !taken(a) && !b.pool.Reserved(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// oldest finds the address that was freed first; taken says which are held.
func (b *block) oldest(taken func(netip.Addr) bool) (freed, bool) {
	for _, f := range b.freed {
		if !b.pool.Reserved(f.address) && !taken(f.address) {
			return f, true
		}
	}
	return freed{}, false
}

// take marks an address as used.
func (b *block) take(a netip.Addr) {
	b.used++
	b.freed = slices.DeleteFunc(b.freed, func(f freed) bool { return f.address == a })
}

// give puts a used address at the end of the queue.
func (b *block) give(f freed) {
	b.used--
	b.freed = append(b.freed, f)
}
