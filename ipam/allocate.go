package ipam

import (
	"context"
	"errors"
	"fmt"
)

// Allocate gives a pod interface its addresses, all or none. It asks the store
// only when the node's blocks have no room: then it claims another block. When no
// block is free it waits for addresses that are being released, and for empty
// blocks of other nodes, which it asks for (Wanted). All that takes no longer than
// claimTimeout. ErrExists if the interface has addresses, ErrExhausted if the
// pools have none left, ErrAddress if a wanted one can't be had.
func (a *Allocator) Allocate(ctx context.Context, req Request) (Allocation, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	var exhausted *exhaustedError
	for {
		changed := a.nextChange()
		al, missing, err := a.tryAllocate(req)
		if err != nil || missing == nil {
			return al, err
		}
		if missing.leaving.IsValid() {
			if !a.await(ctx, missing.family, false, changed) {
				return Allocation{}, fmt.Errorf("%w: %s is still being released: try again", ErrAddress, missing.leaving)
			}
			continue
		}
		if exhausted == nil || !a.isFull(missing.family) {
			err = a.claim(ctx, *missing, func() bool {
				// Another family's block may be missing by now.
				_, now, err := a.choose(req)
				return err == nil && now != nil && *now == *missing
			})
			if err == nil {
				continue
			}
			if !errors.As(err, &exhausted) && (exhausted == nil || ctx.Err() == nil) {
				return Allocation{}, err
			}
		}
		if !a.await(ctx, missing.family, exhausted.others, changed) {
			a.refuse()
			return Allocation{}, exhausted
		}
	}
}

// tryAllocate allocates from the blocks that the node has; it returns what is
// missing if they don't suffice.
func (a *Allocator) tryAllocate(req Request) (Allocation, *shortage, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.reconciled {
		return Allocation{}, nil, fmt.Errorf("%w: try again when the agent has started", ErrNotReconciled)
	}
	if _, ok := a.allocations[req.ID]; ok {
		return Allocation{}, nil, fmt.Errorf("%s of container %s %w: delete it first", req.IfName, req.ContainerID, ErrExists)
	}
	addresses, missing, err := a.choose(req)
	a.refused = a.refused || errors.Is(err, ErrNoPool)
	if err != nil || missing != nil {
		return Allocation{}, missing, err
	}
	al := &Allocation{
		ID: req.ID, Namespace: req.Namespace, Pod: req.Pod,
		HostInterface: req.HostInterface, NetNS: req.NetNS, Addresses: addresses, Extra: req.Extra,
	}
	if err := a.journal.apply(change{Put: []Allocation{*al}}); err != nil {
		return Allocation{}, nil, err
	}
	a.insert(al)
	a.refused = false
	for _, addr := range addresses {
		delete(a.asked, family(addr))
	}
	a.wake()
	return *al, nil, nil
}
