package plan

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Type is the type of one field of a set's key or of a map's value, by nft's
// name.
type Type string

// The types that we use.
const (
	IPv4Addr    Type = "ipv4_addr"
	IPv6Addr    Type = "ipv6_addr"
	InetProto   Type = "inet_proto"
	InetService Type = "inet_service"
	IfName      Type = "ifname"
	Mark        Type = "mark"
	VerdictType Type = "verdict"
)

// Set is a set, or a map if Value is set. Its elements are in Plan.Elements.
type Set struct {
	Key      []Type
	Value    []Type // nil: a set. VerdictType alone: a verdict map
	Interval bool   // elements may be ranges of keys
	Dynamic  bool   // rules add elements, which expire after Timeout; they are not in the plan
	Timeout  time.Duration
	Comment  string
	Role     SetRole
}

// SetRole says what rules do with the packets that a set matches. The dataplane
// orders its transactions by it, so that no packet meets a verdict that holds
// neither before a change nor after it.
type SetRole int

// The roles.
const (
	// Lookup is the role of all sets and maps without another.
	Lookup SetRole = iota
	// Permits: what is in the set is let through, and the rules that look it up
	// may change together with its elements. Those rules must see neither the
	// elements of the other time.
	Permits
	// Guards: what is in the set is dropped unless a verdict map has decided
	// before. Its elements come after those of the maps, and go with them.
	Guards
)

// Equal says whether two sets are the same.
func (s Set) Equal(o Set) bool { return s.String() == o.String() }

// String is the set's declaration in nft's language, in one line.
func (s Set) String() string {
	var b strings.Builder
	b.WriteString("type " + joinTypes(s.Key))
	if s.Value != nil {
		b.WriteString(" : " + joinTypes(s.Value))
	}
	if s.Interval {
		b.WriteString("; flags interval")
	}
	if s.Dynamic {
		fmt.Fprintf(&b, "; flags dynamic,timeout; timeout %s", s.Timeout)
	}
	if s.Comment != "" {
		fmt.Fprintf(&b, "; comment %q", s.Comment)
	}
	return b.String()
}

func joinTypes(ts []Type) string {
	words := make([]string, len(ts))
	for i, t := range ts {
		words[i] = string(t)
	}
	return strings.Join(words, " . ")
}

// Chain is a chain with its rules. A base chain has a Hook.
type Chain struct {
	Hook     string // "", "prerouting", "input", "forward", "output", "postrouting"
	Type     string // "filter", "nat", "route" (routes again what has got another mark); only with a hook
	Priority int    // only with a hook; the policy is always accept
	Rules    []Rule
}

// Equal says whether two chains are the same.
func (c Chain) Equal(o Chain) bool {
	return c.Hook == o.Hook && c.Type == o.Type && c.Priority == o.Priority &&
		slices.EqualFunc(c.Rules, o.Rules, func(a, b Rule) bool { return a.String() == b.String() })
}

// Rule is a list of statements, each of which is a condition or does
// something. Comment is shown by nft list.
type Rule struct {
	Statements []Statement
	Comment    string
}

// R makes a rule.
func R(statements ...Statement) Rule { return Rule{Statements: statements} }

// WithComment returns the rule with a comment, cut to the 127 bytes that nft
// allows.
func (r Rule) WithComment(text string) Rule {
	if len(text) > 127 {
		text = text[:124] + "..."
	}
	r.Comment = text
	return r
}

// String is the rule in nft's language.
func (r Rule) String() string {
	words := make([]string, 0, len(r.Statements)+1)
	for _, s := range r.Statements {
		words = append(words, s.String())
	}
	if r.Comment != "" {
		words = append(words, fmt.Sprintf("comment %q", r.Comment))
	}
	return strings.Join(words, " ")
}

// Statement is one statement of a rule; String is its text in nft's language,
// and says all of it. The types below are all there are.
type Statement interface {
	String() string
	statement()
}

// Field is something of a packet that can be looked up in a set. Random is made
// by RandomMod.
type Field string

// The fields that we use.
const (
	SrcIP4       Field = "ip saddr"
	DstIP4       Field = "ip daddr"
	SrcIP6       Field = "ip6 saddr"
	DstIP6       Field = "ip6 daddr"
	L4Proto      Field = "meta l4proto"
	SrcPort      Field = "th sport"
	DstPort      Field = "th dport"
	InInterface  Field = "iifname"
	OutInterface Field = "oifname"
	PacketMark   Field = "meta mark"
	OrigDstIP4   Field = "ct original ip daddr"
	OrigDstIP6   Field = "ct original ip6 daddr"
	OrigDstPort  Field = "ct original proto-dst"
)

const randomPrefix = "numgen random mod "

// RandomMod is a number from 0 to n-1 (of type mark), new for each packet.
func RandomMod(n int) Field { return Field(fmt.Sprintf("%s%d", randomPrefix, n)) }

// Random returns the n of a field made by RandomMod.
func (f Field) Random() (n int, ok bool) {
	text, ok := strings.CutPrefix(string(f), randomPrefix)
	if ok {
		_, err := fmt.Sscan(text, &n)
		ok = err == nil
	}
	return n, ok
}

// Concat is several fields that are looked up together.
type Concat []Field

func (c Concat) String() string {
	words := make([]string, len(c))
	for i, f := range c {
		words[i] = string(f)
	}
	return strings.Join(words, " . ")
}

type (
	// CtState matches a connection's state: any of "established", "related",
	// "new", "invalid", in this order.
	CtState []string
	// CtStatusDNAT matches connections whose destination is translated.
	CtStatusDNAT struct{}
	// InSet matches if the fields are (not, if Not) in the set.
	InSet struct {
		Fields Concat
		Set    string
		Not    bool
	}
	// Dispatch does what a verdict map says for the fields; nothing if they
	// are not in it.
	Dispatch struct {
		Fields Concat
		Map    string
	}
	// Interface matches a device by name; a name that ends with * matches by
	// prefix.
	Interface struct {
		Field Field // InInterface, OutInterface
		Name  string
	}
	// Family matches packets of IPv4 (4) or IPv6 (6).
	Family int
	// Proto matches the transport protocol by number.
	Proto uint8
	// ToPort matches the destination port; it comes after Proto.
	ToPort uint16
	// LocalAddress matches if the source or destination is an address of this
	// node itself.
	LocalAddress struct{ Source bool }
	// SpoofedSource matches if the route to the packet's source does not lead
	// out of the device on which it came.
	SpoofedSource struct{}
	// NeighbourDiscovery matches neighbour solicitations and advertisements
	// (RFC 4861 §4.3 and §4.4), without which IPv6 can't find even the next hop.
	NeighbourDiscovery struct{}
	// InPrefix matches an address field (SrcIP4 and so on) against a prefix.
	InPrefix struct {
		Field  Field
		Prefix netip.Prefix
		Not    bool
	}
	// SetMark sets the packet's mark to what the map gives for the fields;
	// the rule ends if they are not in it.
	SetMark struct {
		Fields Concat
		Map    string
	}
	// UpdateMap remembers the packet's mark in a dynamic map under the
	// fields, for Timeout, or refreshes an entry's life.
	UpdateMap struct {
		Fields  Concat
		Map     string
		Timeout time.Duration
	}
	// DeleteFromMap removes what UpdateMap remembered.
	DeleteFromMap struct {
		Fields Concat
		Map    string
	}
	// DNAT translates the destination to the address and port that the map
	// gives for the fields; the rule ends if they are not in it.
	DNAT struct {
		Family int // 4 or 6
		Fields Concat
		Map    string
	}
	// Masquerade translates the source to the address of the outgoing device.
	Masquerade struct{}
	// SNAT translates the source to an address of the packet's family. The port stays
	// if it is free there, or is a random one.
	SNAT struct {
		To     netip.Addr
		Random bool
	}
	// NoTrack keeps connection tracking from the packet; only in hooks that come
	// before it.
	NoTrack struct{}
	// Reject answers TCP with a reset and anything else with port unreachable.
	Reject struct{}
	// Verdict is "accept", "drop", "return", "jump CHAIN" or "goto CHAIN".
	Verdict string
	// Counter counts packets and bytes.
	Counter struct{}
)

func (s CtState) String() string    { return "ct state " + strings.Join(s, ",") }
func (CtStatusDNAT) String() string { return "ct status dnat" }
func (s InSet) String() string {
	if s.Not {
		return s.Fields.String() + " != @" + s.Set
	}
	return s.Fields.String() + " @" + s.Set
}
func (s Dispatch) String() string  { return s.Fields.String() + " vmap @" + s.Map }
func (s Interface) String() string { return fmt.Sprintf("%s %q", s.Field, s.Name) }
func (s Family) String() string    { return fmt.Sprintf("meta nfproto ipv%d", int(s)) }
func (s Proto) String() string     { return fmt.Sprintf("meta l4proto %d", uint8(s)) }
func (s ToPort) String() string    { return fmt.Sprintf("th dport %d", uint16(s)) }
func (s LocalAddress) String() string {
	if s.Source {
		return "fib saddr type local"
	}
	return "fib daddr type local"
}
func (SpoofedSource) String() string      { return "fib saddr . iif oif missing" }
func (NeighbourDiscovery) String() string { return "icmpv6 type 135-136" }
func (s InPrefix) String() string {
	op := " "
	if s.Not {
		op = " != "
	}
	return string(s.Field) + op + s.Prefix.String()
}
func (s SetMark) String() string { return "meta mark set " + s.Fields.String() + " map @" + s.Map }
func (s UpdateMap) String() string {
	return fmt.Sprintf("update @%s { %s timeout %s : meta mark }", s.Map, s.Fields, s.Timeout)
}
func (s DeleteFromMap) String() string {
	return fmt.Sprintf("delete @%s { %s : meta mark }", s.Map, s.Fields)
}
func (s DNAT) String() string {
	return fmt.Sprintf("dnat ip%s to %s map @%s", map[int]string{4: "", 6: "6"}[s.Family], s.Fields, s.Map)
}
func (Masquerade) String() string { return "masquerade fully-random" }
func (s SNAT) String() string {
	text := fmt.Sprintf("snat ip%s to %s", strings.TrimSuffix(suffix(s.To), "4"), s.To)
	if s.Random {
		text += " fully-random"
	}
	return text
}
func (NoTrack) String() string   { return "notrack" }
func (Reject) String() string    { return "reject" }
func (s Verdict) String() string { return string(s) }
func (Counter) String() string   { return "counter" }

func (CtState) statement()            {}
func (CtStatusDNAT) statement()       {}
func (InSet) statement()              {}
func (Dispatch) statement()           {}
func (Interface) statement()          {}
func (Family) statement()             {}
func (Proto) statement()              {}
func (ToPort) statement()             {}
func (LocalAddress) statement()       {}
func (SpoofedSource) statement()      {}
func (NeighbourDiscovery) statement() {}
func (InPrefix) statement()           {}
func (SetMark) statement()            {}
func (UpdateMap) statement()          {}
func (DeleteFromMap) statement()      {}
func (DNAT) statement()               {}
func (Masquerade) statement()         {}
func (SNAT) statement()               {}
func (NoTrack) statement()            {}
func (Reject) statement()             {}
func (Verdict) statement()            {}
func (Counter) statement()            {}

// Verdicts without a chain.
const (
	Accept Verdict = "accept"
	Drop   Verdict = "drop"
	Return Verdict = "return"
)

// Jump goes to a chain and comes back when that ends.
func Jump(chain string) Verdict { return Verdict("jump " + chain) }

// Goto goes to a chain and does not come back.
func Goto(chain string) Verdict { return Verdict("goto " + chain) }

// KeyOf builds the kernel's form of a key or value from its fields: each of
// netip.Addr, uint8 (protocol), uint16 (port), uint32 (mark, in host byte
// order as the kernel keeps it) or string (interface name, 16 bytes).
func KeyOf(fields ...any) string {
	var b []byte
	for _, f := range fields {
		switch v := f.(type) {
		case netip.Addr:
			b = append(b, v.AsSlice()...)
		case uint8:
			b = append(b, v, 0, 0, 0)
		case uint16:
			b = append(binary.BigEndian.AppendUint16(b, v), 0, 0)
		case uint32:
			b = binary.NativeEndian.AppendUint32(b, v)
		case string:
			var name [16]byte
			copy(name[:], v)
			b = append(b, name[:]...)
		default:
			panic(fmt.Sprintf("plan.KeyOf: no key field is a %T", f))
		}
	}
	return string(b)
}

// FormatKey prints a key or value in the kernel's form in nft's language.
func FormatKey(types []Type, key string) string {
	var words []string
	for _, t := range types {
		n := t.Size()
		if len(key) < n {
			return fmt.Sprintf("0x%x", key)
		}
		f := key[:n]
		key = key[n:]
		switch t {
		case IPv4Addr, IPv6Addr:
			a, _ := netip.AddrFromSlice([]byte(f))
			words = append(words, a.String())
		case InetProto:
			words = append(words, protoName(f[0]))
		case InetService:
			words = append(words, fmt.Sprint(binary.BigEndian.Uint16([]byte(f))))
		case Mark:
			words = append(words, fmt.Sprintf("0x%x", binary.NativeEndian.Uint32([]byte(f))))
		default:
			words = append(words, strings.TrimRight(f, "\x00"))
		}
	}
	return strings.Join(words, " . ")
}

// Size is the number of bytes that a field of the type takes in a key,
// padding included.
func (t Type) Size() int {
	switch t {
	case IPv6Addr, IfName:
		return 16
	default:
		return 4
	}
}

func protoName(p uint8) string {
	switch p {
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 132:
		return "sctp"
	}
	return fmt.Sprint(p)
}
