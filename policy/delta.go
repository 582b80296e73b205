package policy

import (
	"fmt"
	"net/netip"

	"go4.org/netipx"

	"github.com/twill-net/twill/api"
)

// Family is an address family, usable as an index.
type Family int

// The families.
const (
	IPv4 Family = iota
	IPv6
)

// FamilyOf is the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// String is "4" or "6".
func (f Family) String() string { return [...]string{"4", "6"}[f] }

// Delta is what differs in the compiled form since the last Flush. Names of
// groups and sets are hashes of what defines them or of part of that, so that
// the whole compiled form depends on the intent alone and not on its history.
// To apply one: sets that are new, members, groups, dispatch of endpoints; then
// what is gone. A set may pass from one group to another in one Delta: apply it
// at once, or what is added to sets that are not new after the groups.
type Delta struct {
	Endpoints  []EndpointChange
	Groups     []*Group // new or changed; shared with the compiler, not to be modified
	GroupsGone []string
	Sets       []SetChange
}

// EndpointChange says which groups judge a local endpoint now.
type EndpointChange struct {
	Key    api.Key
	Groups [2]string // by Direction; "": not isolated
	Gone   bool      // deleted, or local no more
}

// Group is what all local endpoints have in common that the same policies
// select, with the same named ports, in one direction.
//
// A connection is judged so: if {peer, protocol, port} is in the NamedPorts set
// of the peer's family, it is allowed; else the first of Ports that holds
// {protocol, port} gives the class, and Rest is the class if none does; the class
// allows the peer or nothing does. That a pod reaches itself and is reached by
// its own node is not part of it: whoever applies the form lets that pass before.
type Group struct {
	Name      string
	Direction Direction
	Comment   string // the policies, in words
	// NamedPorts are the sets of what egress rules with named ports allow, by
	// Family; "" if there are no such rules.
	NamedPorts [2]string
	Ports      []PortClass // sorted, without overlaps
	Classes    []Class
	Rest       Class
}

// PortClass gives a range of ports its class, an index into Group.Classes.
type PortClass struct {
	Protocol    uint8
	First, Last uint16 // inclusive
	Class       int
}

// Class is whom some ports allow.
type Class struct {
	Peers   [2]Allowed // by Family
	Comment string     // the policies that contribute, in words
}

// Allowed is which addresses of one family are allowed: all of them, or those
// in any of the sets.
type Allowed struct {
	Any  bool
	Sets []string
}

// SetKind says what the members of a set are.
type SetKind int

// The kinds of sets.
const (
	Addresses    SetKind = iota // single addresses
	Ranges                      // ranges of addresses, merged
	AddressPorts                // address, protocol and port
)

// Set describes a set, and never changes under a name; the members do.
type Set struct {
	Name    string
	Kind    SetKind
	Family  Family
	Comment string // some of the selectors, in words
}

// SetChange is what became of one set.
type SetChange struct {
	Set
	New, Gone bool
	// Added and Removed are members of Addresses and AddressPorts. A set that
	// is gone lists all that it had.
	Added, Removed []Member
	// RangesAdded and RangesRemoved are the same for Ranges. One may begin where
	// another did that is removed.
	RangesAdded, RangesRemoved []netipx.IPRange
}

// Member is one element of a set. Protocol and Port are 0 but in AddressPorts.
type Member struct {
	Addr     netip.Addr
	Protocol uint8
	Port     uint16
}

// String is such as "10.244.1.2" or "10.244.1.2 . tcp . 80".
func (m Member) String() string {
	if m.Protocol == 0 {
		return m.Addr.String()
	}
	return fmt.Sprintf("%s . %s . %d", m.Addr, ProtocolName(m.Protocol), m.Port)
}
