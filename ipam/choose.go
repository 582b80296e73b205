package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/api"
)

// shortage is what is missing for an allocation: a block of a family, or a
// certain block.
type shortage struct {
	family int
	block  netip.Prefix // zero: any of the family
	// leaving is a wanted address whose pod is being taken down.
	leaving netip.Addr
}

// choose picks one address of each family, without taking it.
func (a *Allocator) choose(req Request) ([]netip.Addr, *shortage, error) {
	wanted := map[int]netip.Addr{}
	for _, w := range req.Want {
		if other, ok := wanted[family(w)]; ok {
			return nil, nil, fmt.Errorf("%w: %s and %s are of one family, a pod gets one address of each", ErrAddress, other, w)
		}
		wanted[family(w)] = w
	}
	pod := api.Key{Namespace: req.Namespace, Name: req.Pod}
	var out []netip.Addr
	for _, f := range []int{4, 6} {
		w, isWanted := wanted[f]
		var addr netip.Addr
		var missing *shortage
		var err error
		switch {
		case isWanted:
			addr, missing, err = a.chooseWanted(pod, w)
		case a.hasPool(f):
			addr, missing = a.chooseAny(pod, f)
		default:
			continue
		}
		if err != nil || missing != nil {
			return nil, missing, err
		}
		out = append(out, addr)
	}
	if out == nil && a.ranges.Only {
		return nil, nil, fmt.Errorf("%w: give %s a range inside an enabled pool (spec.podCIDR of the node)", ErrNoPool, a.claimer.Node)
	}
	if out == nil {
		return nil, nil, fmt.Errorf("%w: add a pool, or change a pool's nodeSelector or disabled, for %s", ErrNoPool, a.claimer.Node)
	}
	return out, nil, nil
}

// chooseAny prefers the address by which the store knows the pod, then addresses
// that were never used, then the one that was freed first: what still knows an
// address should have time to forget it.
func (a *Allocator) chooseAny(pod api.Key, f int) (netip.Addr, *shortage) {
	if addr, ok := a.heldBy(pod, f); ok {
		return addr, nil
	}
	held := func(addr netip.Addr) bool { return len(a.held.by[addr]) > 0 }
	taken := func(addr netip.Addr) bool { return held(addr) || a.journaled(addr) }
	var oldest freed
	for _, b := range a.blocks {
		if !b.usable() || family(b.prefix.Addr()) != f {
			continue
		}
		if addr, ok := b.fresh(taken); ok {
			return addr, nil
		}
		if o, ok := b.oldest(held); ok && (!oldest.address.IsValid() || o.number < oldest.number) {
			oldest = o
		}
	}
	if oldest.address.IsValid() {
		return oldest.address, nil
	}
	return netip.Addr{}, &shortage{family: f}
}

func (a *Allocator) chooseWanted(pod api.Key, w netip.Addr) (netip.Addr, *shortage, error) {
	i := slices.IndexFunc(a.selected, func(p Pool) bool { return p.Prefix.Contains(w) })
	if i < 0 {
		return w, nil, fmt.Errorf("%w: %s is in no enabled pool that selects %s", ErrAddress, w, a.claimer.Node)
	}
	if a.selected[i].Reserved(w) {
		return w, nil, fmt.Errorf("%w: %s is the first or last address of pool %s", ErrAddress, w, a.selected[i].Prefix)
	}
	if id, used := a.users[w]; used && a.allocations[id].Leaving {
		return w, &shortage{family: family(w), leaving: w}, nil
	}
	if err := a.freeTo(pod, w); err != nil {
		return w, nil, err
	}
	if b := a.blockOf(w); b == nil {
		return w, &shortage{family: family(w), block: a.selected[i].BlockOf(w)}, nil
	} else if b.pool == nil {
		return w, nil, fmt.Errorf("%w: %s is in block %s, which has another size than those of its pool now: ask for another", ErrAddress, w, b.prefix)
	} else if !b.usable() {
		return w, nil, fmt.Errorf("%w: the store has not yet confirmed block %s of %s", ErrAddress, b.prefix, w)
	}
	return w, nil, nil
}

// describe says whose an allocation is.
func (a *Allocator) describe(id ID) string {
	if al := a.allocations[id]; al.Pod != "" {
		return "pod " + al.Namespace + "/" + al.Pod
	} else if al.ContainerID == "" {
		return "interface " + al.HostInterface
	}
	return "container " + id.ContainerID
}

func (a *Allocator) hasPool(f int) bool {
	return slices.ContainsFunc(a.selected, func(p Pool) bool { return family(p.Prefix.Addr()) == f })
}

// claim claims one block, if it is still missing when its turn comes.
func (a *Allocator) claim(ctx context.Context, s shortage, stillMissing func() bool) error {
	if err := a.beginClaim(ctx); err != nil {
		return err
	}
	defer a.endClaim()
	a.mu.Lock()
	missing := stillMissing()
	pools := slices.DeleteFunc(slices.Clone(a.selected), func(p Pool) bool { return family(p.Prefix.Addr()) != s.family })
	mine := map[netip.Prefix]bool{}
	for prefix := range a.unknown {
		if !a.compared || a.isUsed(prefix) {
			mine[prefix] = false // taken up first, as ConfirmBlocks would
		}
	}
	for _, b := range a.blocks {
		mine[b.prefix] = b.confirmed
	}
	_, isUnknown := a.unknown[s.block]
	heard, seen := slices.Collect(maps.Values(a.heard)), a.changes
	a.mu.Unlock()
	if !missing {
		return nil
	}
	prefix := s.block
	var err error
	if prefix.IsValid() {
		if isUnknown && !mine[prefix] {
			err = a.claimer.Release(ctx, prefix) // see Claim
		}
		if err == nil {
			err = a.claimer.ClaimBlock(ctx, prefix)
		}
	} else {
		prefix, err = a.claimer.Claim(ctx, pools, mine, heard)
		a.mu.Lock()
		a.claimErr[s.family] = err
		a.full[s.family] = errors.Is(err, ErrExhausted) && a.changes == seen
		a.mu.Unlock()
	}
	switch {
	case errors.Is(err, ErrExhausted) || errors.Is(err, ErrAddress):
		return err
	case err != nil:
		return fmt.Errorf("the blocks of %s are full, and no other can be claimed: %w", a.claimer.Node, err)
	}
	return a.own(ctx, prefix)
}

// own writes down that blocks are the node's, and has addresses given out from
// them as soon as it is known which are in use.
func (a *Allocator) own(ctx context.Context, prefixes ...netip.Prefix) error {
	unconfirmed, err := a.addBlocks(prefixes)
	if err != nil {
		return err
	}
	for _, p := range unconfirmed {
		if a.survey != nil {
			if err := a.survey(ctx, p); err != nil {
				return fmt.Errorf("find out which addresses of block %s are in use: %w", p, err)
			}
		}
		a.mu.Lock()
		a.addBlock(p, true)
		a.wake()
		a.mu.Unlock()
	}
	return nil
}

// addBlocks writes down that blocks are the node's, and returns those from which
// nothing is given out yet.
func (a *Allocator) addBlocks(prefixes []netip.Prefix) (unconfirmed []netip.Prefix, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var fresh []netip.Prefix
	for _, p := range prefixes {
		if !a.owns(p) {
			fresh = append(fresh, p)
		}
	}
	if len(fresh) > 0 {
		if err := a.journal.apply(change{NewBlocks: fresh}); err != nil {
			return nil, err
		}
	}
	for _, p := range fresh {
		a.addBlock(p, false)
		delete(a.unknown, p)
	}
	for _, b := range a.blocks {
		if !b.confirmed && slices.Contains(prefixes, b.prefix) {
			unconfirmed = append(unconfirmed, b.prefix)
		}
	}
	return unconfirmed, nil
}

// beginClaim waits until nobody else changes which blocks the node has.
func (a *Allocator) beginClaim(ctx context.Context) error {
	select {
	case a.claiming <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the blocks of %s are full, and claiming another takes too long: %w", a.claimer.Node, ctx.Err())
	}
}

func (a *Allocator) endClaim() { <-a.claiming }

// addBlock adds a block that is in the journal, or confirms it.
func (a *Allocator) addBlock(prefix netip.Prefix, confirmed bool) {
	for _, b := range a.blocks {
		if b.prefix == prefix {
			b.confirmed = b.confirmed || confirmed
			return
		}
	}
	b := &block{prefix: prefix, confirmed: confirmed}
	for addr := range a.users {
		if prefix.Contains(addr) {
			b.used++
		}
	}
	a.setPool(b)
	a.blocks = append(a.blocks, b)
	slices.SortFunc(a.blocks, func(x, y *block) int { return x.prefix.Compare(y.prefix) })
}

// freeOf is the number of free addresses of a family.
func (a *Allocator) freeOf(f int) int {
	n := 0
	for _, b := range a.blocks {
		if b.usable() && family(b.prefix.Addr()) == f {
			n += b.free()
		}
	}
	return n
}
