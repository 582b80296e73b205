package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// contents is everything that stands in a journal.
type contents struct {
	boot        string // the boot during which the journal was begun
	blocks      []netip.Prefix
	allocations map[ID]Allocation
	users       map[netip.Addr]ID
	freed       []netip.Addr // that were given back and not given out since, oldest first
}

// change is one transaction. An allocation that is put takes the place of the one
// with its ID. The addresses of one that is dropped are freed where a block has
// them; a block that goes takes its freed addresses along.
type change struct {
	NewBlocks []netip.Prefix `json:",omitempty"`
	OldBlocks []netip.Prefix `json:",omitempty"`
	Put       []Allocation   `json:",omitempty"`
	Drop      []ID           `json:",omitempty"`
}

// snapshot is contents as a journal begins with it.
type snapshot struct {
	Format      int
	Boot        string
	Blocks      []netip.Prefix `json:",omitempty"`
	Allocations []Allocation   `json:",omitempty"` // by ID
	Freed       []netip.Addr   `json:",omitempty"`
}

// format numbers what a journal's lines mean.
const format = 1

// nothing is what a new node's journal tells.
func nothing(boot string) contents {
	return contents{boot: boot, allocations: map[ID]Allocation{}, users: map[netip.Addr]ID{}}
}

func (c *contents) snapshot() snapshot {
	s := snapshot{Format: format, Boot: c.boot, Blocks: c.blocks, Freed: c.freed}
	for _, id := range slices.SortedFunc(maps.Keys(c.allocations), ID.compare) {
		s.Allocations = append(s.Allocations, c.allocations[id])
	}
	return s
}

// load is the contents that a snapshot was taken of.
func (s snapshot) load() (c contents, err error) {
	if s.Format != format {
		return c, fmt.Errorf("format %d is not known", s.Format)
	}
	c = nothing(s.Boot)
	if err := c.apply(change{NewBlocks: s.Blocks, Put: s.Allocations}); err != nil {
		return c, err
	}
	for _, addr := range s.Freed {
		if err := c.isUnused(addr); err != nil {
			return c, err
		}
		c.free(addr)
	}
	return c, nil
}

// apply makes a change, or none of it if it is one that no allocator makes: an
// address that two have, say.
func (c *contents) apply(ch change) error {
	if err := c.check(ch); err != nil {
		return err
	}
	isOld := func(b netip.Prefix) bool { return slices.Contains(ch.OldBlocks, b) }
	c.blocks = append(slices.DeleteFunc(c.blocks, isOld), ch.NewBlocks...)
	if len(ch.OldBlocks) > 0 {
		c.freed = slices.DeleteFunc(c.freed, func(a netip.Addr) bool { return !c.hasBlockOf(a) })
	}
	for _, al := range ch.Put {
		for _, addr := range c.allocations[al.ID].Addresses {
			delete(c.users, addr)
		}
		c.allocations[al.ID] = al
		for _, addr := range al.Addresses {
			c.users[addr] = al.ID
			if i := slices.Index(c.freed, addr); i >= 0 {
				c.freed = slices.Delete(c.freed, i, i+1)
			}
		}
	}
	for _, id := range ch.Drop {
		for _, addr := range c.allocations[id].Addresses {
			delete(c.users, addr)
			c.free(addr)
		}
		delete(c.allocations, id)
	}
	return nil
}

func (c *contents) free(addr netip.Addr) {
	if c.hasBlockOf(addr) {
		c.freed = append(c.freed, addr)
	}
}

func (c *contents) hasBlockOf(addr netip.Addr) bool {
	return slices.ContainsFunc(c.blocks, func(b netip.Prefix) bool { return b.Contains(addr) })
}

func (c *contents) check(ch change) error {
	if err := c.checkBlocks(ch); err != nil {
		return err
	}
	seen := map[netip.Addr]bool{}
	for i, al := range ch.Put {
		if slices.ContainsFunc(ch.Put[:i], func(other Allocation) bool { return other.ID == al.ID }) {
			return fmt.Errorf("%s is put twice", al.ID)
		}
		for _, addr := range al.Addresses {
			id, used := c.users[addr]
			if !addr.IsValid() || addr.Zone() != "" || addr.Is4In6() || seen[addr] || used && id != al.ID {
				return fmt.Errorf("address %s of %s is another's too, or none", addr, al.ID)
			}
			seen[addr] = true
		}
	}
	for i, id := range ch.Drop {
		if _, ok := c.allocations[id]; !ok || slices.Contains(ch.Drop[:i], id) {
			return fmt.Errorf("%s is dropped, and has nothing", id)
		}
	}
	return nil
}

func (c *contents) checkBlocks(ch change) error {
	for _, b := range ch.OldBlocks {
		if !slices.Contains(c.blocks, b) {
			return fmt.Errorf("block %s goes, and is not there", b)
		}
	}
	for i, b := range ch.NewBlocks {
		if !b.IsValid() || b != b.Masked() {
			return fmt.Errorf("%s is no block", b)
		}
		for _, other := range slices.Concat(c.blocks, ch.NewBlocks[:i]) {
			if b.Overlaps(other) {
				return fmt.Errorf("blocks %s and %s overlap", other, b)
			}
		}
	}
	return nil
}

// isUnused refuses what is no address that can be free.
func (c *contents) isUnused(addr netip.Addr) error {
	if _, used := c.users[addr]; used || slices.Contains(c.freed, addr) || !c.hasBlockOf(addr) {
		return fmt.Errorf("freed address %s is used, or freed twice, or in no block", addr)
	}
	return nil
}
