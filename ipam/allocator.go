package ipam

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// Errors that a caller branches on; see also ErrExhausted.
var (
	// ErrExists: the interface has its addresses already.
	ErrExists = errors.New("has addresses already")
	// ErrAddress: an address that was asked for can't be given.
	ErrAddress = errors.New("the address can't be given")
	// ErrNoPool: no enabled pool selects the node.
	ErrNoPool = errors.New("no enabled pool selects the node")
	// ErrNotReconciled: Reconcile was not called yet.
	ErrNotReconciled = errors.New("addresses are not yet compared with the kernel")
	// ErrJournal: what was asked for did not happen, since it could not be
	// written down.
	ErrJournal = errors.New("the journal of addresses can't be written")
)

// claimTimeout bounds what an attachment waits for the store when the node's
// blocks are full.
const claimTimeout = 5 * time.Second

// ID names a pod interface.
type ID struct {
	ContainerID string
	IfName      string
}

// String is "container/interface".
func (id ID) String() string { return id.ContainerID + "/" + id.IfName }

func (id ID) compare(other ID) int {
	return cmp.Or(strings.Compare(id.ContainerID, other.ContainerID), strings.Compare(id.IfName, other.IfName))
}

// Request asks for addresses for one pod interface, one of each family for
// which an enabled pool selects the node.
type Request struct {
	ID
	Namespace, Pod string
	HostInterface  string // the host end's name
	NetNS          string // path of the pod's network namespace
	// Want holds addresses that are wanted, at most one of a family.
	Want []netip.Addr
	// Extra is kept with the allocation for the caller.
	Extra []byte
}

// Allocation is what one pod interface has. Those that an Allocator returns
// are shared and must not be changed.
type Allocation struct {
	ID
	Namespace     string       `json:",omitempty"`
	Pod           string       `json:",omitempty"`
	HostInterface string       `json:",omitempty"`
	NetNS         string       `json:",omitempty"`
	Addresses     []netip.Addr // IPv4 first
	Extra         []byte       `json:",omitempty"`
	// Leaving: the interface is being taken down; see Leave.
	Leaving bool `json:",omitempty"`
}

// Options are the settings of an Allocator.
type Options struct {
	Store store.Store
	// Ahead is the number of free addresses of a family below which Keep claims
	// another block. Default 8.
	Ahead int
	Log   *slog.Logger
	// BootID names the current boot. Default: the kernel's.
	BootID string
	// Survey calls Hold for everything that has addresses in a block. It is
	// called before addresses are given out from a block that is new to the node.
	Survey func(ctx context.Context, block netip.Prefix) error
}

// Allocator gives out the addresses of one node. All methods may be called
// concurrently.
type Allocator struct {
	claimer   Claimer
	ahead     int
	log       *slog.Logger
	recovered string
	survey    func(context.Context, netip.Prefix) error
	claiming  chan struct{} // holds one token while a block is claimed, confirmed or given back
	low       chan struct{} // wakes Keep

	mu          sync.Mutex
	journal     ledger
	lock        *os.File // keeps other processes from the journal
	pools       []Pool   // by name
	labels      map[string]string
	ranges      Ranges
	selected    []Pool // enabled, and select the node; no more of them than is in its ranges
	blocks      []*block
	allocations map[ID]*Allocation
	users       map[netip.Addr]ID
	inQueue     map[netip.Addr]bool // freed
	number      uint64              // of the address that was freed last; grows with time
	reconciled  bool
	held        held
	claimErr    map[int]error    // of a family: how the last claim went
	heard       map[string]claim // by name of the block's object
	demand
}

// claim is a block and whose it is.
type claim struct {
	block netip.Prefix
	node  string
}

// Open opens the journal at path, or makes one. A corrupt journal is moved
// aside (see Recovered). Nothing is given out before Reconcile was called.
func Open(path, node string, o Options) (*Allocator, error) {
	if o.BootID == "" {
		o.BootID = bootID()
	}
	if o.Ahead == 0 {
		o.Ahead = 8
	}
	a := &Allocator{
		claimer: Claimer{Store: o.Store, Node: node}, ahead: o.Ahead, log: o.Log, survey: o.Survey,
		claiming: make(chan struct{}, 1), low: make(chan struct{}, 1),
		allocations: map[ID]*Allocation{}, users: map[netip.Addr]ID{}, inQueue: map[netip.Addr]bool{},
		claimErr: map[int]error{}, heard: map[string]claim{}, demand: newDemand(),
	}
	lock, err := lockJournal(path)
	if err != nil {
		return nil, err
	}
	a.lock = lock
	if err := a.openJournal(path, o.BootID); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return a, nil
}

// openJournal reads the journal and begins a fresh one, which is of this boot.
func (a *Allocator) openJournal(path, boot string) error {
	c, size, err := readJournal(path, boot)
	isGood := err == nil
	if !isGood {
		c = nothing(boot)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
	case errors.Is(err, errCorrupt):
		aside, moveErr := moveAside(path)
		if moveErr != nil {
			return moveErr
		}
		a.recovered = aside
		a.log.Warn("address journal is corrupt: rebuilding it from the kernel and the store", "kept", aside, "err", err)
	case err != nil:
		return err
	}
	a.load(c, boot)
	c.boot = boot
	j, err := createJournal(path, c)
	if err != nil && isGood {
		// Pods can still go, and others come as soon as there is room.
		a.log.Warn("a fresh address journal can't be written: working on with the old one", "err", err)
		j, err = resumeJournal(path, c, size)
	}
	if err != nil {
		return err
	}
	a.journal = j
	return nil
}

func (a *Allocator) load(c contents, boot string) {
	for _, prefix := range c.blocks {
		a.addBlock(prefix, c.boot == boot)
	}
	for _, al := range c.allocations {
		a.insert(&al)
	}
	for _, addr := range c.freed {
		if b := a.blockOf(addr); b != nil {
			a.number++
			b.freed = append(b.freed, freed{a.number, addr})
			a.inQueue[addr] = true
		}
	}
}

// Recovered is the path to which a corrupt journal was moved when this
// Allocator was opened; empty if there was none.
func (a *Allocator) Recovered() string { return a.recovered }

// TryJournal says whether the journal can take about as much as an allocation
// needs.
func (a *Allocator) TryJournal() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.journal.try()
}

// Close closes the journal. The Allocator can't be used afterwards.
func (a *Allocator) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.journal.close(), a.lock.Close())
}

// SetPools says which pools there are. A pool that can't be used is left out;
// the error tells of all such.
func (a *Allocator) SetPools(pools []*api.IPPool) error {
	var parsed []Pool
	var errs []error
	for _, p := range pools {
		pool, err := ParsePool(p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		parsed = append(parsed, pool)
	}
	slices.SortFunc(parsed, func(x, y Pool) int { return strings.Compare(x.Name, y.Name) })
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pools = parsed
	a.selectPools()
	return errors.Join(errs...)
}

// SetNode says which labels the node has, and which ranges are its own.
func (a *Allocator) SetNode(labels map[string]string, ranges Ranges) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.labels, a.ranges = labels, ranges
	a.selectPools()
}

func (a *Allocator) selectPools() {
	a.selected = nil
	for _, p := range a.pools {
		if !p.Disabled && p.Nodes.Matches(a.labels) {
			a.selected = append(a.selected, p)
		}
	}
	a.selected = a.ranges.within(a.selected)
	for _, b := range a.blocks {
		a.setPool(b)
	}
	a.mayClaim(4)
	a.mayClaim(6)
}

// setPool finds the pool of a block. A block of another size is left from a pool
// that was deleted and made anew: no new address comes from it.
func (a *Allocator) setPool(b *block) {
	b.pool, b.reserved, b.next = nil, 0, 0 // what is reserved may differ: look again
	defer a.countHeld(b)
	for i, p := range a.selected {
		if !p.hasBlock(b.prefix) {
			continue
		}
		b.pool = &a.selected[i]
		b.reserved = p.reservedIn(b.prefix)
		return
	}
}

// Heard notes what the store told of a block's object: which block it is, and
// whose. The blocks of other nodes are not claimed, even where the store does not
// know them any more: one that was put back from a backup lacks what was claimed
// since, until their nodes claim them again.
func (a *Allocator) Heard(object string, block netip.Prefix, node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	block = block.Masked()
	a.heard[object] = claim{block, node}
	if node == a.claimer.Node && !a.owns(block) {
		a.onlyInStore(block)
	}
	if len(a.wants) > 0 {
		a.wakeKeep() // what another node wants may have no free block any more
	}
}

// HeardGone notes that a block's object is gone.
func (a *Allocator) HeardGone(object string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetHeard(object)
}

// Ready says why the next Allocate would fail, as far as is known without
// asking the store; nil if it would not. That no block could be claimed ahead of need
// is no reason: Allocate also gets the empty blocks of other nodes. The pools are
// exhausted only once an attachment was refused.
func (a *Allocator) Ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.reconciled {
		return ErrNotReconciled
	}
	_, missing, err := a.choose(Request{})
	if missing != nil {
		err = a.claimErr[missing.family]
		if !a.refused && errors.Is(err, ErrExhausted) {
			return nil
		}
	}
	return err
}

// Release frees what a pod interface has and returns it; false if it has
// nothing, which is no error.
func (a *Allocator) Release(id ID) (Allocation, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	al, ok := a.allocations[id]
	if !ok {
		return Allocation{}, false, nil
	}
	if err := a.free(al); err != nil {
		return Allocation{}, false, err
	}
	return *al, true, nil
}

// Get returns what a pod interface has; false if it has nothing.
func (a *Allocator) Get(id ID) (Allocation, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	al, ok := a.allocations[id]
	if !ok {
		return Allocation{}, false
	}
	return *al, true
}

// List returns all allocations, ordered by ID.
func (a *Allocator) List() []Allocation {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]Allocation, 0, len(a.allocations))
	for _, al := range a.allocations {
		list = append(list, *al)
	}
	slices.SortFunc(list, func(x, y Allocation) int { return x.ID.compare(y.ID) })
	return list
}

// Strays lists the allocations with an address that is in none of the node's
// blocks.
func (a *Allocator) Strays() []Allocation {
	a.mu.Lock()
	defer a.mu.Unlock()
	var strays []Allocation
	for _, al := range a.allocations {
		if slices.ContainsFunc(al.Addresses, func(addr netip.Addr) bool { return a.blockOf(addr) == nil }) {
			strays = append(strays, *al)
		}
	}
	return strays
}

// Block is one of the node's blocks, for people to look at.
type Block struct {
	Prefix netip.Prefix
	Pool   string // empty: no new addresses come from it
	Used   int
	Free   int
}

// Blocks returns the node's blocks, ordered by prefix.
func (a *Allocator) Blocks() []Block {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]Block, 0, len(a.blocks))
	for _, b := range a.blocks {
		view := Block{Prefix: b.prefix, Used: b.used}
		if b.usable() {
			view.Pool, view.Free = b.pool.Name, b.free()
		}
		out = append(out, view)
	}
	return out
}

// free takes allocations out of journal and memory.
func (a *Allocator) free(als ...*Allocation) error {
	var c change
	for _, al := range als {
		c.Drop = append(c.Drop, al.ID)
	}
	if err := a.journal.apply(c); err != nil {
		return err
	}
	for _, al := range als {
		delete(a.allocations, al.ID)
		for _, addr := range al.Addresses {
			delete(a.users, addr)
			if b := a.blockOf(addr); b != nil {
				a.number++
				b.give(freed{a.number, addr})
				a.inQueue[addr] = true
			}
		}
		if a.anyHeld(al.Addresses) {
			a.heldChanged()
		}
	}
	a.wake()
	return nil
}

// insert puts an allocation that is in the journal into memory.
func (a *Allocator) insert(al *Allocation) {
	a.allocations[al.ID] = al
	for _, addr := range al.Addresses {
		a.users[addr] = al.ID
		delete(a.inQueue, addr)
		if b := a.blockOf(addr); b != nil {
			b.take(addr)
		}
	}
	a.unhold(al.Addresses)
}

// blockOf is the node's block that contains the address, or nil.
func (a *Allocator) blockOf(addr netip.Addr) *block {
	for _, b := range a.blocks {
		if b.prefix.Contains(addr) {
			return b
		}
	}
	return nil
}

// owns says whether a block is the node's by its journal.
func (a *Allocator) owns(prefix netip.Prefix) bool {
	return slices.ContainsFunc(a.blocks, func(b *block) bool { return b.prefix == prefix })
}

// isUsed says whether a pod, or the host, has an address of the block.
func (a *Allocator) isUsed(prefix netip.Prefix) bool {
	for addr := range a.held.by {
		if prefix.Contains(addr) {
			return true
		}
	}
	for addr := range a.users {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// wake tells Keep and waiting attachments that what is free, or to be given back,
// may have changed.
func (a *Allocator) wake() {
	close(a.change)
	a.change = make(chan struct{})
	a.wakeKeep()
}

func (a *Allocator) wakeKeep() {
	select {
	case a.low <- struct{}{}:
	default:
	}
}
