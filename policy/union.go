package policy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// definition is what a set stands for.
type definition struct {
	kind   SetKind
	family Family

	selections []*selection // that give members; sorted by id
	literals   []netip.Addr // Addresses: members whatever happens; sorted
	ranges     []netipx.IPRange
	terms      []term // AddressPorts; sorted by id

	key string // kind and family, then the ids of all that is above, sorted; see seal
}

// term is one named port of an egress rule with one of the rule's peers.
type term struct {
	id       itemID
	peer     *selection
	ranges   []netipx.IPRange // if set, only addresses in these
	name     string
	protocol uint8
}

func newTerm(peer *selection, ranges []netipx.IPRange, port Port) term {
	id := itemOf(fmt.Appendf(nil, "%x %v %d/%q", peer.id, ranges, port.Protocol, port.Name))
	return term{id, peer, ranges, port.Name, port.Protocol}
}

// String is such as "app=db in shop: tcp/sql".
func (t term) String() string {
	text := t.peer.String()
	if t.ranges != nil {
		text = "pods with addresses in blocks"
	}
	return text + ": " + Port{Protocol: t.protocol, Name: t.name}.String()
}

// itemID is a hash of one of the things that a set is made of.
type itemID = [itemSize]byte

const itemSize = 16

func itemOf(text []byte) itemID {
	sum := sha256.Sum256(text)
	return itemID(sum[:itemSize])
}

var kindNames = [...]string{Addresses: "peers", Ranges: "nets", AddressPorts: "named"}

// seal computes the key when the definition is complete.
func (def *definition) seal() {
	ids := make([]itemID, 1, 1+len(def.selections)+len(def.literals)+len(def.ranges)+len(def.terms))
	copy(ids[0][:], kindNames[def.kind]+def.family.String())
	if def.kind != AddressPorts { // there the terms say it all
		for _, s := range def.selections {
			ids = append(ids, s.id)
		}
	}
	var text []byte
	for _, a := range def.literals {
		text = a.AppendTo(text[:0])
		ids = append(ids, itemOf(text))
	}
	for _, r := range def.ranges {
		text = r.AppendTo(text[:0])
		ids = append(ids, itemOf(text))
	}
	for _, t := range def.terms {
		ids = append(ids, t.id)
	}
	slices.SortFunc(ids[1:], func(a, b itemID) int { return bytes.Compare(a[:], b[:]) })
	var key strings.Builder
	key.Grow(len(ids) * itemSize)
	for _, id := range ids {
		key.Write(id[:])
	}
	def.key = key.String()
}

// union is a definition that groups use. Groups that allow the same share it.
type union struct {
	definition
	name   string
	groups map[*group]struct{}
}

// acquire returns the union of a definition, for use by a group.
func (c *Compiler) acquire(def definition, g *group) *union {
	i, found := c.findUnion(def.key)
	if !found {
		c.unions = slices.Insert(c.unions, i, &union{definition: def, groups: map[*group]struct{}{}})
		c.doubtName(i-1, i, i+1)
	}
	u := c.unions[i]
	u.groups[g] = struct{}{}
	return u
}

// release undoes acquire.
func (c *Compiler) release(u *union, g *group) {
	delete(u.groups, g)
	if len(u.groups) > 0 {
		return
	}
	i, _ := c.findUnion(u.key)
	c.unions = slices.Delete(c.unions, i, i+1)
	c.doubtName(i-1, i)
	delete(c.doubtful, u)
	if u.name != "" {
		c.vacated = append(c.vacated, u.name)
	}
}

func (c *Compiler) findUnion(key string) (int, bool) {
	return slices.BinarySearchFunc(c.unions, key, func(u *union, key string) int { return strings.Compare(u.key, key) })
}

// doubtName has unions' names looked at again, because a neighbour came or went.
func (c *Compiler) doubtName(indices ...int) {
	for _, i := range indices {
		if i >= 0 && i < len(c.unions) {
			c.doubtful[c.unions[i]] = struct{}{}
		}
	}
}

// nameOf returns a union's name, and a comment that depends on nothing but the
// name. It is made of the shortest beginning of the key that no other union's
// key has: nearly always of one item, the one with the smallest hash.
//
// So the name depends on the intent alone, and yet seldom changes: another peer
// beside n has the smallest hash once in n+1 times. Else the kernel's set goes
// on and gains that peer's members, where a name made of all items would have
// every member written again. What it costs to be renamed grows with the peers
// as it becomes rarer: in the mean, one more peer costs little more than twice
// its own members.
func (c *Compiler) nameOf(u *union) (name, comment string) {
	i, _ := c.findUnion(u.key)
	items := 0
	if i > 0 {
		items = itemsInCommon(u.key, c.unions[i-1].key)
	}
	if i+1 < len(c.unions) {
		items = max(items, itemsInCommon(u.key, c.unions[i+1].key))
	}
	// The first item is but the kind and the family.
	beginning := u.key[:min((max(items, 1)+1)*itemSize, len(u.key))]
	last := beginning[len(beginning)-itemSize:]
	var words []fmt.Stringer
	for _, t := range u.terms {
		if string(t.id[:]) <= last {
			words = append(words, t)
		}
	}
	for _, s := range u.selections {
		if u.kind == Addresses && string(s.id[:]) <= last {
			words = append(words, s)
		}
	}
	switch {
	case len(words) > 0:
		comment = "includes " + listed(words)
	case u.kind == Addresses:
		comment = "includes single addresses"
	}
	return kindNames[u.kind] + u.family.String() + "-" + hashOf([]byte(beginning[itemSize:])), comment
}

func itemsInCommon(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n:n+itemSize] == b[n:n+itemSize] {
		n += itemSize
	}
	return n / itemSize
}

// nameUnions gives unions their names and has the sets follow: new ones first,
// so that a selector that goes on being used is never gone in between. Groups
// that use a union with another name now are to be told again.
func (c *Compiler) nameUnions(d *Delta) (renamed map[*group]struct{}) {
	claimed, renamed := map[*set]*union{}, map[*group]struct{}{}
	var named []*union
	comments := map[*union]string{}
	for u := range c.doubtful {
		name, comment := c.nameOf(u)
		if name == u.name {
			continue
		}
		if u.name != "" {
			c.vacated = append(c.vacated, u.name)
		}
		u.name, comments[u] = name, comment
		named = append(named, u)
		for g := range u.groups {
			renamed[g] = struct{}{}
		}
	}
	for _, u := range named {
		if s := c.sets[u.name]; s != nil {
			claimed[s] = u
		} else {
			c.makeSet(u, comments[u])
		}
	}
	for s, u := range claimed {
		c.redefine(s, u.definition, d)
	}
	for _, name := range c.vacated {
		s := c.sets[name]
		if s != nil && claimed[s] == nil {
			c.dropSet(s, d)
		}
	}
	clear(c.doubtful)
	c.vacated = nil
	return renamed
}
