package ipam

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"
)

const (
	// retryKeep is how long Keep waits after the store failed it.
	retryKeep = 5 * time.Second
	// releaseGrace is how long a block is kept after it became unneeded: pods that
	// are replaced are gone for a moment only.
	releaseGrace = 10 * time.Second
)

// Keep keeps as many addresses as the node needs, until ctx ends: it claims a
// block whenever few free addresses are left, so that Allocate need not, and gives
// back blocks that are not needed any more. report is called when what Wanted or
// Exhausted return may have changed.
func (a *Allocator) Keep(ctx context.Context, report func()) {
	failing := false
	for {
		err := a.prepare(ctx)
		_, next, releaseErr := a.releaseUnneeded(ctx, releaseGrace)
		err = errors.Join(err, releaseErr)
		if err != nil && !failing && ctx.Err() == nil {
			a.log.Warn("can't claim or give back blocks of addresses: trying again", "err", err)
		}
		report()
		if failing = err != nil; failing && !sleep(ctx, retryKeep) {
			return
		} else if failing {
			continue
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-a.low:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// prepare claims blocks of each family that has few free addresses.
func (a *Allocator) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	var errs []error
	for _, f := range []int{4, 6} {
		lowNow := func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.isLow(f)
		}
		// One block may be less than what is to be free.
		for lowNow() {
			err := a.claim(ctx, shortage{family: f}, func() bool { return a.isLow(f) })
			if errors.Is(err, ErrExhausted) {
				break // Allocate tells it when an address is missing
			} else if err != nil {
				errs = append(errs, err)
				break
			}
		}
	}
	return errors.Join(errs...)
}

// isLow says whether a block is to be claimed ahead of need. While another node
// has none left, a free block is for that node, unless pods wait here too.
func (a *Allocator) isLow(f int) bool {
	free := a.freeOf(f)
	switch {
	case !a.reconciled || !a.hasPool(f) || a.full[f]:
		return false
	case a.othersWant(f):
		return free == 0 && a.refused
	}
	return free < a.ahead
}

// releaseUnneeded gives back the blocks that were unneeded for the grace, and one
// that another node has waited for. It returns what it gave back, and after how
// long to look again.
func (a *Allocator) releaseUnneeded(ctx context.Context, grace time.Duration) (released []netip.Prefix, next time.Duration, err error) {
	due, next := a.due(time.Now(), grace)
	if len(due) == 0 {
		return nil, next, nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	if err := a.beginClaim(ctx); err != nil {
		return nil, next, err
	}
	defer a.endClaim()
	// What is due may have changed while another claim had its turn.
	due, _ = a.due(time.Now(), grace)
	for _, prefix := range due {
		done, err := a.release(ctx, prefix)
		if err != nil {
			return released, next, err
		}
		if done {
			released = append(released, prefix)
			a.log.Info("gave back a block of addresses", "block", prefix)
		}
	}
	_, next = a.due(time.Now(), grace)
	return released, next, nil
}

// never is longer than Keep ever waits.
const never = time.Hour

// due lists the blocks that are to be given back now, and says after how long more
// may be due.
func (a *Allocator) due(now time.Time, grace time.Duration) (blocks []netip.Prefix, next time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if next = never; !a.compared {
		return nil, next // the journal may have been lost
	}
	add := func(prefix netip.Prefix, at time.Time) {
		if wait := at.Sub(now); wait > 0 {
			next = min(next, wait)
		} else if !slices.Contains(blocks, prefix) {
			blocks = append(blocks, prefix)
		}
	}
	unneeded := a.unneeded()
	for _, b := range a.blocks {
		switch {
		case !slices.Contains(unneeded, b.prefix):
			b.unneeded = time.Time{}
			continue
		case b.unneeded.IsZero():
			b.unneeded = now
		}
		add(b.prefix, b.unneeded.Add(grace))
	}
	for prefix, since := range a.unknown {
		add(prefix, since.Add(grace))
	}
	if prefix, ok := a.wantedByOthers(); !ok {
		a.giveAt = time.Time{}
	} else {
		if a.giveAt.IsZero() {
			a.giveAt = now.Add(a.giveDelay())
		}
		add(prefix, a.giveAt)
	}
	for _, last := range a.asked {
		if end := last.Add(wantTime); end.After(now) {
			next = min(next, end.Sub(now))
		}
	}
	return blocks, next
}

// unneeded are the blocks without used addresses from which no new address may
// come, or without which twice what Keep claims ahead is free.
func (a *Allocator) unneeded() (prefixes []netip.Prefix) {
	spare := map[int]int{4: a.freeOf(4), 6: a.freeOf(6)}
	for _, b := range a.blocks {
		f := family(b.prefix.Addr())
		switch {
		case b.used+b.held > 0 || !b.confirmed:
		case b.pool == nil:
			prefixes = append(prefixes, b.prefix)
		case spare[f]-b.free() >= 2*a.ahead:
			spare[f] -= b.free()
			prefixes = append(prefixes, b.prefix)
		}
	}
	return prefixes
}

// release gives a block back, unless an address of it is used by now. First the
// journal, then the store: after a crash between the two the store still says that
// the block is the node's, and it is found again (unknown).
func (a *Allocator) release(ctx context.Context, prefix netip.Prefix) (bool, error) {
	isFree, err := a.disownEmpty(prefix)
	if err != nil {
		return false, err
	}
	if !isFree {
		return false, a.adoptUsed(ctx, prefix)
	}
	if err := a.claimer.Release(ctx, prefix); err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.unknown, prefix)
	a.giveAt = time.Time{}
	if object := BlockName(prefix); a.heard[object].node == a.claimer.Node { // else another node has it already
		a.forgetHeard(object)
	}
	a.mayClaim(family(prefix.Addr()))
	return true, nil
}

// disownEmpty forgets a block that has no used address.
func (a *Allocator) disownEmpty(prefix netip.Prefix) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.isUsed(prefix) {
		return false, nil
	}
	if !a.owns(prefix) {
		return true, nil
	}
	if err := a.forget([]netip.Prefix{prefix}); err != nil {
		return false, err
	}
	a.onlyInStore(prefix)
	return true, nil
}

// adoptUsed takes a block that only the store knows to be the node's into the
// journal, if pods have addresses of it.
func (a *Allocator) adoptUsed(ctx context.Context, prefix netip.Prefix) error {
	a.mu.Lock()
	owned := a.owns(prefix)
	a.mu.Unlock()
	if owned {
		return nil
	}
	if err := a.claimer.ClaimBlock(ctx, prefix); err != nil {
		return err
	}
	return a.own(ctx, prefix)
}

// sleep waits; false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
