package preflight

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/attribute"
	"github.com/twill-net/twill/dataplane/nft"
)

// packet is the first one of a connection.
type packet struct {
	family  byte // NFPROTO_IPV4 or NFPROTO_IPV6
	proto   byte
	port    uint16 // that it goes to; 0: any
	in, out device
	to      []byte // address that it goes to; nil: not known
}

// device is one that a packet comes in or goes out by; what is not known of it is
// empty.
type device struct {
	name  string
	index int
}

// outcome is what may become of a packet, as far as it can be told: others' rules
// may ask what is not known of it.
type outcome byte

const (
	accepts outcome = 1 << iota
	drops
	passes // comes to the chain's end
)

// table is the chains of one table, by name.
type table struct {
	family byte
	chains map[string]*nft.Foreign
}

// hook is what base chains of a hook do with a packet that is never accepted for
// good: each of them has its say. by is the first that may drop it.
func hook(all []nft.Foreign, at int, p packet) (result outcome, by *nft.Foreign) {
	result = accepts
	for i := range all {
		c := &all[i]
		if c.Type != "filter" || c.Hook != at || c.Family != unix.NFPROTO_INET && c.Family != p.family {
			continue
		}
		o := tableOf(all, c).chain(c, p, map[string]outcome{})
		if o&passes != 0 {
			o &^= passes
			if c.Drops {
				o |= drops
			} else {
				o |= accepts
			}
		}
		switch {
		case o == drops:
			return drops, c
		case o&drops != 0 && by == nil:
			result, by = accepts|drops, c
		}
	}
	return result, by
}

func tableOf(all []nft.Foreign, c *nft.Foreign) table {
	t := table{c.Family, map[string]*nft.Foreign{}}
	for i := range all {
		if all[i].Family == c.Family && all[i].Table == c.Table {
			t.chains[all[i].Name] = &all[i]
		}
	}
	return t
}

// chain follows the rules. The kernel refuses loops; known keeps what was found
// out, so that a chain is followed once however often it is jumped to.
func (t table) chain(c *nft.Foreign, p packet, known map[string]outcome) outcome {
	if c == nil {
		return passes
	}
	if o, ok := known[c.Name]; ok {
		return o
	}
	known[c.Name] = passes
	var result outcome
	for _, rule := range c.Rules {
		ends, continues := t.rule(rule, p, known)
		result |= ends
		if !continues {
			known[c.Name] = result
			return result
		}
	}
	known[c.Name] = result | passes
	return result | passes
}

// rule is what a rule does: how it may end the chain, and whether the next rule
// may have its turn.
func (t table) rule(rule []nft.Expression, p packet, known map[string]outcome) (ends outcome, continues bool) {
	m := machine{packet: p, registers: map[uint32][]byte{}}
	for _, e := range rule {
		verdicts, matches := m.step(e)
		if matches == no {
			return ends, true
		}
		continues = continues || matches == maybe
		if len(verdicts) == 0 {
			continue
		}
		for _, v := range verdicts {
			e, c := t.verdict(v, p, known)
			ends |= e
			continues = continues || c
		}
		return ends, continues
	}
	return ends, true
}

func (t table) verdict(verdict string, p packet, known map[string]outcome) (ends outcome, continues bool) {
	word, target, _ := strings.Cut(verdict, " ")
	switch word {
	case "accept":
		return accepts, false
	case "drop":
		return drops, false
	case "return":
		return passes, false
	case "goto":
		return t.chain(t.chains[target], p, known), false
	case "jump":
		o := t.chain(t.chains[target], p, known)
		return o &^ passes, o&passes != 0
	}
	return accepts | drops, true // queue, and what is not known
}

// match says whether a packet fulfils a condition.
type match int

const (
	yes match = iota
	no
	maybe
)

func matching(is bool) match {
	if is {
		return yes
	}
	return no
}

// machine is the state in which a rule is followed: what is in the registers, as
// far as it is known.
type machine struct {
	packet
	registers map[uint32][]byte
}

// Numbers of linux/netfilter/nf_conntrack_common.h, as nft has them.
const ctNew = 8

func (m *machine) step(e nft.Expression) (verdicts []string, matches match) {
	values := map[uint16][]byte{}
	for kind, v := range attribute.All(e.Attributes) {
		values[kind] = v
	}
	number := func(kind uint16) uint32 {
		if v := values[kind]; len(v) == 4 {
			return binary.BigEndian.Uint32(v)
		}
		return 0
	}
	switch e.Name {
	case "meta":
		m.load(number(unix.NFTA_META_DREG), m.meta(number(unix.NFTA_META_KEY)))
	case "payload":
		m.load(number(unix.NFTA_PAYLOAD_DREG), m.payload(number(unix.NFTA_PAYLOAD_BASE), number(unix.NFTA_PAYLOAD_OFFSET), number(unix.NFTA_PAYLOAD_LEN)))
	case "ct":
		var value []byte
		if number(unix.NFTA_CT_KEY) == unix.NFT_CT_STATE {
			value = binary.NativeEndian.AppendUint32(nil, ctNew)
		}
		m.load(number(unix.NFTA_CT_DREG), value)
	case "bitwise":
		m.load(number(unix.NFTA_BITWISE_DREG), masked(m.registers[number(unix.NFTA_BITWISE_SREG)], data(values[unix.NFTA_BITWISE_MASK]), data(values[unix.NFTA_BITWISE_XOR])))
	case "cmp":
		return nil, compare(m.registers[number(unix.NFTA_CMP_SREG)], number(unix.NFTA_CMP_OP), data(values[unix.NFTA_CMP_DATA]))
	case "range":
		have := m.registers[number(unix.NFTA_RANGE_SREG)]
		if have == nil {
			return nil, maybe
		}
		within := string(have) >= string(data(values[unix.NFTA_RANGE_FROM_DATA])) && string(have) <= string(data(values[unix.NFTA_RANGE_TO_DATA]))
		return nil, matching(within == (number(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_EQ))
	case "lookup":
		inverted := number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0
		return lookUp(m.registers[number(unix.NFTA_LOOKUP_SREG)], e.Set, inverted)
	case "immediate":
		if e.Verdict != "" {
			return []string{e.Verdict}, yes
		}
	case "match":
		return nil, m.extension(attribute.Text(values[unix.NFTA_MATCH_NAME]), values[unix.NFTA_MATCH_INFO])
	case "target":
		return target(attribute.Text(values[unix.NFTA_TARGET_NAME])), yes
	case "reject":
		return []string{"drop"}, yes
	case "counter", "log", "notrack", "dynset":
	default:
		return nil, maybe
	}
	return nil, yes
}

// data is the value in an attribute of data.
func data(nested []byte) []byte {
	for kind, v := range attribute.All(nested) {
		if kind == unix.NFTA_DATA_VALUE {
			return v
		}
	}
	return nil
}

func (m *machine) load(register uint32, value []byte) {
	if register != 0 {
		m.registers[register] = value
	}
}

func (m *machine) meta(key uint32) []byte {
	name := func(d device) []byte {
		if d.name == "" {
			return nil
		}
		return append([]byte(d.name), make([]byte, unix.IFNAMSIZ-len(d.name))...)
	}
	index := func(d device) []byte {
		if d.index == 0 {
			return nil
		}
		return binary.NativeEndian.AppendUint32(nil, uint32(d.index))
	}
	switch key {
	case unix.NFT_META_L4PROTO:
		return []byte{m.proto}
	case unix.NFT_META_NFPROTO:
		return []byte{m.family}
	case unix.NFT_META_IIFNAME:
		return name(m.in)
	case unix.NFT_META_OIFNAME:
		return name(m.out)
	case unix.NFT_META_IIF:
		return index(m.in)
	case unix.NFT_META_OIF:
		return index(m.out)
	case unix.NFT_META_PROTOCOL:
		kind := uint16(unix.ETH_P_IP)
		if m.family == unix.NFPROTO_IPV6 {
			kind = unix.ETH_P_IPV6
		}
		return binary.BigEndian.AppendUint16(nil, kind)
	}
	return nil
}

func (m *machine) payload(base, offset, length uint32) []byte {
	const protocolAt, to4, to6 = 9, 16, 24 // in the headers of IPv4 and IPv6
	to := uint32(to4)
	if m.family == unix.NFPROTO_IPV6 {
		to = to6
	}
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset >= to && uint64(offset)+uint64(length) <= uint64(to)+uint64(len(m.to)):
		return m.to[offset-to : offset-to+length]
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == 2 && length == 2 && m.port != 0:
		return binary.BigEndian.AppendUint16(nil, m.port)
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == protocolAt && length == 1 && m.family == unix.NFPROTO_IPV4:
		return []byte{m.proto}
	}
	return nil
}

func masked(value, mask, xor []byte) []byte {
	if value == nil || len(mask) > len(value) || len(xor) != len(mask) {
		return nil
	}
	out := make([]byte, len(mask))
	for i := range mask {
		out[i] = value[i]&mask[i] ^ xor[i]
	}
	return out
}

func compare(have []byte, op uint32, want []byte) match {
	if have == nil || len(want) > len(have) {
		return maybe
	}
	a, b := string(have[:len(want)]), string(want) // of a name with a *, only its beginning is compared
	switch op {
	case unix.NFT_CMP_EQ:
		return matching(a == b)
	case unix.NFT_CMP_NEQ:
		return matching(a != b)
	case unix.NFT_CMP_LT:
		return matching(a < b)
	case unix.NFT_CMP_LTE:
		return matching(a <= b)
	case unix.NFT_CMP_GT:
		return matching(a > b)
	case unix.NFT_CMP_GTE:
		return matching(a >= b)
	}
	return maybe
}

// lookUp finds a key in a set. Where the key is not known or is only the first
// part of a longer one, each element may be the one.
func lookUp(have []byte, set []nft.SetElement, inverted bool) (verdicts []string, matches match) {
	for _, e := range set {
		if have == nil || len(e.First) != len(have) {
			matches = maybe
			if e.Verdict != "" {
				verdicts = append(verdicts, e.Verdict)
			}
			continue
		}
		if string(have) >= e.First && string(have) <= e.Last {
			if e.Verdict != "" {
				return []string{e.Verdict}, yes
			}
			return nil, matching(!inverted)
		}
	}
	if matches == maybe {
		return verdicts, maybe
	}
	return nil, matching(inverted)
}
