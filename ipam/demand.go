package ipam

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/twill-net/twill/api"
)

const (
	// askPatience is how long an attachment waits for another node to give back an
	// empty block: longer than owners take to decide.
	askPatience = 2 * time.Second
	// wantTime is for how long a node asks after the last attachment that waited for an
	// address: longer than a runtime waits until it tries again. A node on which an
	// attachment was refused asks until it has an address: it reports itself exhausted
	// for that long, and its runtime may attach nothing meanwhile.
	wantTime = time.Minute
	// Owners of empty blocks wait at random before one gives, so that of many
	// owners few give: less than giveStep for each owner, and less than maxGive.
	giveStep, maxGive = 20 * time.Millisecond, time.Second
)

// demand is what an Allocator knows of missing addresses, on this node and on
// others.
type demand struct {
	full    map[int]bool      // of a family: no block is free, as far as is known
	asked   map[int]time.Time // of a family: when an attachment last needed a block of another node
	refused bool              // an attachment found no address, and none was seen since
	changes uint64            // counts what may let a claim succeed that failed
	change  chan struct{}     // closed by wake

	wants  map[string][]netip.Prefix // by node: ranges of which it needs a block
	giveAt time.Time                 // when this node gives one; zero: none is asked for
	// unknown are the blocks that are this node's only by the store, and since when.
	unknown  map[netip.Prefix]time.Time
	compared bool          // ConfirmBlocks succeeded
	patience time.Duration // askPatience, but in tests without Keep
}

func newDemand() demand {
	return demand{
		full: map[int]bool{}, asked: map[int]time.Time{}, change: make(chan struct{}),
		wants: map[string][]netip.Prefix{}, unknown: map[netip.Prefix]time.Time{}, patience: askPatience,
	}
}

// Wanted are the ranges in which no block is free and this node needs one: its
// pods find no address. The agent publishes them, so that another node gives back an
// empty block (SetWanted). None while the node needs none.
func (a *Allocator) Wanted() (ranges []netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range []int{4, 6} {
		last, ok := a.asked[f]
		if !ok {
			continue
		}
		if _, missing := a.chooseAny(api.Key{}, f); missing == nil || !a.refused && time.Since(last) >= wantTime {
			delete(a.asked, f)
			continue
		}
		for _, p := range a.selected {
			if family(p.Prefix.Addr()) == f {
				ranges = append(ranges, p.Prefix)
			}
		}
	}
	return ranges
}

// SetWanted notes what another node wants (Wanted).
func (a *Allocator) SetWanted(node string, ranges []netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if node == a.claimer.Node || slices.Equal(a.wants[node], ranges) {
		return
	}
	if a.wants[node] = ranges; len(ranges) == 0 {
		delete(a.wants, node)
	}
	a.wake()
}

// Exhausted says why the last attachment got no address if the next would get none
// either: ErrExhausted or ErrNoPool. It is nil again as soon as there is one.
func (a *Allocator) Exhausted() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.refused {
		return nil
	}
	_, missing, err := a.choose(Request{})
	if missing != nil {
		err = a.claimErr[missing.family]
	} else if err == nil {
		a.refused = false
	}
	if errors.Is(err, ErrExhausted) || errors.Is(err, ErrNoPool) {
		return err
	}
	return nil
}

// refuse notes that an attachment found no address.
func (a *Allocator) refuse() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused = true
}

// nextChange is closed when an attachment that found no address may find one.
func (a *Allocator) nextChange() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.change
}

func (a *Allocator) isFull(f int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.full[f]
}

// await waits for a change after an attachment found no address, as long as
// addresses of the family are being released or other nodes, if they own blocks,
// may give one back. It returns false when there is nothing to wait for, or not any
// longer.
func (a *Allocator) await(ctx context.Context, f int, others bool, changed <-chan struct{}) bool {
	a.mu.Lock()
	if a.asked[f].IsZero() {
		a.wakeKeep()
	}
	a.asked[f] = time.Now()
	var patience time.Duration
	if others {
		patience = a.patience
	}
	if a.leaving(f) {
		patience = claimTimeout
	}
	a.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-changed:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// leaving says whether addresses of the family are being released: by an interface of
// this node, or by a pod that the store still lists with an address of a block that
// this node has since. The store hears of a release after the block was given back.
func (a *Allocator) leaving(f int) bool {
	for addr, holders := range a.held.by {
		b := a.blockOf(addr)
		if family(addr) == f && b != nil && b.usable() && !b.pool.Reserved(addr) &&
			!slices.ContainsFunc(holders, func(h Holder) bool { return h.Host != "" }) {
			return true
		}
	}
	for _, al := range a.allocations {
		if al.Leaving && slices.ContainsFunc(al.Addresses, func(addr netip.Addr) bool { return family(addr) == f }) {
			return true
		}
	}
	return false
}

// mayClaim notes that a block of the family may be free by now.
func (a *Allocator) mayClaim(f int) {
	a.changes++
	a.full[f] = false
	a.wake()
}

// onlyInStore notes a block that is the node's by the store and not by the journal.
func (a *Allocator) onlyInStore(prefix netip.Prefix) {
	if _, ok := a.unknown[prefix]; !ok {
		a.unknown[prefix] = time.Now()
		a.wake()
	}
}

func (a *Allocator) forgetHeard(object string) {
	c, ok := a.heard[object]
	if !ok {
		return
	}
	delete(a.heard, object)
	delete(a.unknown, c.block)
	a.mayClaim(family(c.block.Addr()))
}

// othersWant says whether another node needs a block of a pool of this node's.
func (a *Allocator) othersWant(f int) bool {
	for _, ranges := range a.wants {
		for _, r := range ranges {
			overlaps := func(p Pool) bool { return p.Prefix.Overlaps(r) }
			if family(r.Addr()) == f && slices.ContainsFunc(a.selected, overlaps) {
				return true
			}
		}
	}
	return false
}

// wantedByOthers is an empty block of this node's for which another node waits: no
// other block is free in what that node wants.
func (a *Allocator) wantedByOthers() (netip.Prefix, bool) {
	if len(a.wants) == 0 {
		return netip.Prefix{}, false
	}
	enabled := slices.DeleteFunc(slices.Clone(a.pools), func(p Pool) bool { return p.Disabled })
	for _, ranges := range a.wants {
		wanted := Ranges{Prefixes: ranges, Only: true}.within(enabled)
		for _, b := range a.blocks {
			if b.used+b.held > 0 || !b.confirmed {
				continue
			}
			inBlock := func(p Pool) bool { return p.Prefix.Overlaps(b.prefix) }
			if slices.ContainsFunc(wanted, inBlock) && !a.anyFree(wanted, family(b.prefix.Addr())) {
				return b.prefix, true
			}
		}
	}
	return netip.Prefix{}, false
}

// anyFree says whether a block of one of the pools is free.
func (a *Allocator) anyFree(pools []Pool, f int) bool {
	blocks := map[netip.Prefix]string{}
	for _, c := range a.heard {
		blocks[c.block] = c.node
	}
	for _, b := range a.blocks {
		blocks[b.prefix] = a.claimer.Node
	}
	for _, p := range pools {
		if family(p.Prefix.Addr()) == f {
			for range p.unclaimed(a.claimer.Node, blocks) {
				return true
			}
		}
	}
	return false
}

// giveDelay is how long to wait before a wanted block is given back: another owner
// may be faster.
func (a *Allocator) giveDelay() time.Duration {
	owners := map[string]struct{}{}
	for _, c := range a.heard {
		owners[c.node] = struct{}{}
	}
	return rand.N(min(giveStep*time.Duration(len(owners)+1), maxGive))
}
