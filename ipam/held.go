package ipam

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/api"
)

// Holder has addresses that this node's journal may not know: a pod that the
// store lists, or something that the kernel lists. Exactly one field is set.
type Holder struct {
	Pod  api.Key
	Host string // for people: "interface cni0"
}

// String is for people.
func (h Holder) String() string {
	if h.Host != "" {
		return h.Host
	}
	return fmt.Sprintf("pod %s", h.Pod)
}

// held are the addresses in the node's blocks that holders have.
type held struct {
	by    map[netip.Addr][]Holder
	addrs map[Holder][]netip.Addr
}

// Hold notes which addresses a holder has, instead of those noted before; with
// none the holder is forgotten. Allocate gives none of them to another pod. Only
// addresses in the node's blocks are kept; see Options.Survey.
//
// Of pods the journal knows more than the store, which hears of a release later:
// an address that was given out from this journal is not held by a pod.
func (a *Allocator) Hold(h Holder, addrs []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var keep []netip.Addr
	for _, addr := range addrs {
		if a.blockOf(addr) != nil && (h.Host != "" || !a.journaled(addr)) {
			keep = append(keep, addr)
		}
	}
	if slices.Equal(keep, a.held.addrs[h]) {
		return
	}
	a.held.set(h, keep)
	a.heldChanged()
}

// Journaled says whether the journal knows the address: an interface has it, or
// had it since the node claimed its block.
func (a *Allocator) Journaled(addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.journaled(addr)
}

func (a *Allocator) journaled(addr netip.Addr) bool {
	_, used := a.users[addr]
	return used || a.inQueue[addr]
}

func (h *held) set(holder Holder, addrs []netip.Addr) {
	for _, addr := range h.addrs[holder] {
		rest := slices.DeleteFunc(h.by[addr], func(other Holder) bool { return other == holder })
		if h.by[addr] = rest; len(rest) == 0 {
			delete(h.by, addr)
		}
	}
	delete(h.addrs, holder)
	if len(addrs) == 0 {
		return
	}
	if h.by == nil {
		h.by, h.addrs = map[netip.Addr][]Holder{}, map[Holder][]netip.Addr{}
	}
	h.addrs[holder] = addrs
	for _, addr := range addrs {
		h.by[addr] = append(h.by[addr], holder)
	}
}

// unhold takes addresses that were given out from the pods that the store said
// have them: now the journal knows.
func (a *Allocator) unhold(addrs []netip.Addr) {
	if !a.anyHeld(addrs) {
		return
	}
	for _, addr := range addrs {
		for _, h := range slices.Clone(a.held.by[addr]) {
			if h.Host == "" {
				a.held.set(h, slices.DeleteFunc(slices.Clone(a.held.addrs[h]), func(other netip.Addr) bool { return other == addr }))
			}
		}
	}
	a.heldChanged()
}

func (a *Allocator) anyHeld(addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(addr netip.Addr) bool { return len(a.held.by[addr]) > 0 })
}

// forgetHeld forgets what is held in blocks that are not the node's any more.
func (a *Allocator) forgetHeld() {
	for h, addrs := range a.held.addrs {
		a.held.set(h, slices.DeleteFunc(slices.Clone(addrs), func(addr netip.Addr) bool { return a.blockOf(addr) == nil }))
	}
}

// heldChanged counts what is held anew and has blocks searched from the start for
// addresses that are free by now.
func (a *Allocator) heldChanged() {
	for _, b := range a.blocks {
		b.next = 0
		a.countHeld(b)
	}
	a.wake()
}

func (a *Allocator) countHeld(b *block) {
	b.held = 0
	for addr := range a.held.by {
		_, used := a.users[addr]
		if b.prefix.Contains(addr) && !used && (b.pool == nil || !b.pool.Reserved(addr)) {
			b.held++
		}
	}
}

// heldBy is the address of a family that the store says the pod has, if it can be
// given out: the pod has lost its interface, and is known by this address.
func (a *Allocator) heldBy(pod api.Key, f int) (netip.Addr, bool) {
	for _, addr := range a.held.addrs[Holder{Pod: pod}] {
		b := a.blockOf(addr)
		if family(addr) == f && b.usable() && !b.pool.Reserved(addr) && a.freeTo(pod, addr) == nil {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// freeTo says who other than the pod has an address.
func (a *Allocator) freeTo(pod api.Key, addr netip.Addr) error {
	if id, used := a.users[addr]; used {
		return fmt.Errorf("%w: %s is in use by %s", ErrAddress, addr, a.describe(id))
	}
	for _, h := range a.held.by[addr] {
		if h.Host != "" || h.Pod != pod {
			return fmt.Errorf("%w: %s is in use by %s", ErrAddress, addr, h)
		}
	}
	return nil
}
