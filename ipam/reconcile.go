package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Interface is a pod interface as the kernel has it.
type Interface struct {
	HostInterface string // the host end's name
	// ID is empty if the kernel does not tell whose the interface is.
	ID
	Addresses []netip.Addr // to which routes lead out of the host end
}

// Report is what Reconcile did.
type Report struct {
	Freed   []Allocation // their interface is gone
	Adopted []Allocation // their interface was not in the journal
	// Conflicts are sentences on addresses that two interfaces have.
	Conflicts []string
}

// Reconcile compares the journal with the pod interfaces that exist: what has
// no interface is freed, or is Leaving where the journal has no room to say so;
// addresses that are in use but not in the journal are taken down. An adopted interface without an ID is kept under the ID with an
// empty container and its host end's name as interface.
//
// It has to be called once before Allocate gives anything out. Later calls
// must not run beside an attachment, whose interface may not be there yet.
func (a *Allocator) Reconcile(live []Interface) (Report, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var r Report
	if err := a.freeGone(live, &r); err != nil {
		return r, err
	}
	if err := a.adopt(live, &r); err != nil {
		return r, err
	}
	a.reconciled = true
	a.wake()
	return r, nil
}

func (a *Allocator) freeGone(live []Interface, r *Report) error {
	names, ids := map[string]bool{}, map[ID]bool{}
	for _, i := range live {
		names[i.HostInterface], ids[i.ID] = true, true
	}
	var gone []*Allocation
	for _, al := range a.allocations {
		if !names[al.HostInterface] && !ids[al.ID] {
			gone = append(gone, al)
		}
	}
	// The order in which they are freed decides the order in which they are
	// used again: make it the same each time.
	slices.SortFunc(gone, func(x, y *Allocation) int { return x.ID.compare(y.ID) })
	if err := a.free(gone...); errors.Is(err, ErrJournal) {
		for _, al := range gone {
			al.Leaving = true // an address that stays taken is no reason not to start
		}
		return nil
	} else if err != nil {
		return err
	}
	for _, al := range gone {
		r.Freed = append(r.Freed, *al)
	}
	return nil
}

func (a *Allocator) adopt(live []Interface, r *Report) error {
	byName := map[string]*Allocation{}
	for _, al := range a.allocations {
		byName[al.HostInterface] = al
	}
	for _, i := range live {
		known := byName[i.HostInterface]
		if known == nil {
			known = a.allocations[i.ID]
		}
		var extra []netip.Addr
		for _, addr := range i.Addresses {
			if id, used := a.users[addr]; !used {
				extra = append(extra, addr)
			} else if known == nil || id != known.ID {
				r.Conflicts = append(r.Conflicts, fmt.Sprintf("%s of interface %s is also the address of %s", addr, i.HostInterface, a.describe(id)))
			}
		}
		if len(extra) == 0 {
			continue
		}
		al := &Allocation{ID: i.ID, HostInterface: i.HostInterface}
		if i.ContainerID == "" {
			al.ID = ID{IfName: i.HostInterface}
		}
		if known != nil {
			*al = *known
		}
		al.Addresses = append(slices.Clone(al.Addresses), extra...)
		if err := a.journal.apply(change{Put: []Allocation{*al}}); err != nil {
			return err
		}
		// Only what is new may be counted.
		a.insert(&Allocation{ID: al.ID, Addresses: extra})
		a.allocations[al.ID] = al
		byName[i.HostInterface] = al
		r.Adopted = append(r.Adopted, *al)
	}
	return nil
}

// Identify notes whose an adopted interface is, and returns what it has; false
// if there is none that was adopted under this ID and not identified yet.
func (a *Allocator) Identify(id ID, namespace, pod string, extra []byte) (Allocation, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.allocations[id]
	if known == nil || known.Pod != "" {
		return Allocation{}, false, nil
	}
	al := *known
	al.Namespace, al.Pod, al.Extra = namespace, pod, extra
	if err := a.journal.apply(change{Put: []Allocation{al}}); err != nil {
		return Allocation{}, false, err
	}
	a.allocations[id] = &al
	return al, true, nil
}

// Leave notes that a pod interface is being taken down, in memory and in the
// journal, and returns what it has; false if it has nothing. An agent that starts
// before Release was called finds it Leaving, and goes on. Where the journal can't
// be written (ErrJournal), this process alone knows.
func (a *Allocator) Leave(id ID) (Allocation, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.allocations[id]
	if known == nil {
		return Allocation{}, false, nil
	}
	if known.Leaving {
		return *known, true, nil
	}
	al := *known
	al.Leaving = true
	a.allocations[id] = &al
	return al, true, a.journal.apply(change{Put: []Allocation{al}})
}

// ConfirmBlocks compares the node's blocks with the store: blocks that the
// store lacks are claimed again, blocks that only the store knows are adopted at
// the first call, later only if pods have addresses of them, and blocks that are
// another node's by now are given up and returned. Pods that have addresses in
// those keep them, but packets for them go elsewhere.
//
// Call it at every start as soon as the store answers: after a boot nothing is
// given out from blocks that are not confirmed.
func (a *Allocator) ConfirmBlocks(ctx context.Context) (lost []netip.Prefix, err error) {
	if err := a.beginClaim(ctx); err != nil {
		return nil, err
	}
	defer a.endClaim()
	own, err := a.claimer.Own(ctx)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	var missing []netip.Prefix // in the store
	for _, b := range a.blocks {
		if !slices.Contains(own, b.prefix) {
			missing = append(missing, b.prefix)
		}
	}
	own = slices.DeleteFunc(own, func(prefix netip.Prefix) bool {
		// A store that was put back from a backup may give the node a block that it
		// has released since, and that another node has.
		if c, ok := a.heard[BlockName(prefix)]; ok && c.node != a.claimer.Node && !a.owns(prefix) {
			return true
		}
		if !a.compared || a.owns(prefix) || a.isUsed(prefix) {
			return false
		}
		a.onlyInStore(prefix)
		return true
	})
	a.mu.Unlock()
	for _, prefix := range missing {
		switch err := a.claimer.ClaimBlock(ctx, prefix); {
		case errors.Is(err, ErrAddress):
			lost = append(lost, prefix)
		case err != nil:
			return nil, err
		default:
			own = append(own, prefix)
		}
	}
	if err := a.own(ctx, own...); err != nil {
		return nil, err
	}
	if err := a.disown(lost); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.compared = true
	a.wake()
	return lost, nil
}

// disown forgets blocks; allocations in them stay.
func (a *Allocator) disown(prefixes []netip.Prefix) error {
	if len(prefixes) == 0 {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.forget(prefixes)
}

func (a *Allocator) forget(prefixes []netip.Prefix) error {
	if err := a.journal.apply(change{OldBlocks: prefixes}); err != nil {
		return err
	}
	isGone := func(b *block) bool { return slices.Contains(prefixes, b.prefix) }
	for _, b := range a.blocks {
		if isGone(b) {
			for _, f := range b.freed {
				delete(a.inQueue, f.address)
			}
		}
	}
	a.blocks = slices.DeleteFunc(a.blocks, isGone)
	a.forgetHeld()
	return nil
}
