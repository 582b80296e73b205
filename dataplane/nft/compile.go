package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

// compiler turns rules into the kernel's expressions. It looks up the sets that
// rules name, so that a rule whose fields are not the set's key is refused here
// and not misread by everything that lists it.
type compiler struct {
	set func(name string) (plan.Set, bool)
}

// program is one kernel rule in the making.
type program struct {
	compiler
	code   attributes
	family int // of the packets that get this far, as far as is known; 0: any
	proto  int // their transport protocol, -1: any
}

// rule is a rule as the kernel gets it.
type rule struct {
	code    attributes // the list of expressions
	comment string
}

// rules compiles one planned rule. A rule that rejects becomes two: the first
// takes TCP before anything else is looked at, so that what stands before the
// reject (a counter, say) happens once for each packet.
func (c compiler) rules(r plan.Rule) ([]rule, error) {
	protocol, rejects := -1, false
	for i, s := range r.Statements {
		switch s := s.(type) {
		case plan.Proto:
			protocol = int(s)
		case plan.Reject:
			if rejects = true; i != len(r.Statements)-1 {
				return nil, fmt.Errorf("statements after reject: put it last")
			}
		}
	}
	comment := cutComment(r.Comment)
	if !rejects {
		code, err := c.compile(r.Statements, nil)
		return []rule{{code, comment}}, err
	}
	statements := r.Statements[:len(r.Statements)-1]
	var rules []rule
	if protocol == -1 || protocol == unix.IPPROTO_TCP {
		prelude := statements
		if protocol == -1 {
			prelude = append([]plan.Statement{plan.Proto(unix.IPPROTO_TCP)}, statements...)
		}
		code, err := c.compile(prelude, reset{})
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule{code, comment})
	}
	if protocol != unix.IPPROTO_TCP {
		code, err := c.compile(statements, unreachable{})
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule{code, comment})
	}
	return rules, nil
}

// reset and unreachable are the two halves of plan.Reject.
type (
	reset       struct{}
	unreachable struct{}
)

func (c compiler) compile(statements []plan.Statement, end any) (attributes, error) {
	p := &program{compiler: c, proto: -1}
	for _, s := range statements {
		if err := p.statement(s); err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
	}
	switch end.(type) {
	case reset:
		p.emit(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	case unreachable:
		p.emit(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
	}
	return p.code, nil
}

// emit adds expressions. Those that we make can't fail to marshal.
func (p *program) emit(expressions ...expr.Any) {
	for _, e := range expressions {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			panic(fmt.Sprintf("nft: marshal %T: %v", e, err))
		}
		if ct, ok := e.(*expr.Ct); ok && ct.Key != expr.CtKeySTATE && ct.Key != expr.CtKeySTATUS {
			b = originalDirection(ct)
		}
		p.code = p.code.nest(unix.NFTA_LIST_ELEM, b)
	}
}

// originalDirection marshals what expr.Ct does not: the direction of the keys
// that are newer than it.
func originalDirection(ct *expr.Ct) attributes {
	return attributes(nil).text(unix.NFTA_EXPR_NAME, "ct").nest(unix.NFTA_EXPR_DATA, attributes(nil).
		u32(unix.NFTA_CT_KEY, uint32(ct.Key)).
		u32(unix.NFTA_CT_DREG, ct.Register).
		bytes(unix.NFTA_CT_DIRECTION, []byte{0})) // IP_CT_DIR_ORIGINAL
}

func against(op expr.CmpOp, data ...byte) expr.Any {
	return &expr.Cmp{Op: op, Register: register(0), Data: data}
}

func masked(mask []byte) expr.Any {
	r := register(0)
	return &expr.Bitwise{SourceRegister: r, DestRegister: r, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

func (p *program) statement(s plan.Statement) error {
	switch s := s.(type) {
	case plan.CtState:
		return p.ctState(s)
	case plan.CtStatusDNAT:
		const dnat = 1 << 5 // IPS_DST_NAT
		p.emit(&expr.Ct{Key: expr.CtKeySTATUS, Register: register(0)}, masked(hostOrder(dnat)), against(expr.CmpOpNeq, hostOrder(0)...))
	case plan.InSet:
		return p.lookUp(s.Fields, s.Set, nil, &expr.Lookup{Invert: s.Not})
	case plan.Dispatch:
		return p.lookUp(s.Fields, s.Map, []plan.Type{plan.VerdictType}, &expr.Lookup{IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT})
	case plan.Interface:
		return p.device(s)
	case plan.Family:
		return p.wantFamily(int(s))
	case plan.Proto:
		p.proto = int(s)
		p.emit(meta(expr.MetaKeyL4PROTO)(register(0)), against(expr.CmpOpEq, byte(s)))
	case plan.ToPort:
		if p.proto < 0 {
			return fmt.Errorf("a port of no protocol: name it first")
		}
		p.emit(sources[plan.DstPort].load(register(0)), against(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, uint16(s))...))
	case plan.LocalAddress:
		p.emit(&expr.Fib{Register: register(0), ResultADDRTYPE: true, FlagSADDR: s.Source, FlagDADDR: !s.Source},
			against(expr.CmpOpEq, hostOrder(unix.RTN_LOCAL)...))
	case plan.SpoofedSource:
		p.emit(&expr.Fib{Register: register(0), ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true},
			against(expr.CmpOpEq, hostOrder(0)...))
	case plan.NeighbourDiscovery:
		const solicitation, advertisement = 135, 136
		r := register(0)
		p.emit(meta(expr.MetaKeyL4PROTO)(r), against(expr.CmpOpEq, unix.IPPROTO_ICMPV6),
			&expr.Payload{DestRegister: r, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			against(expr.CmpOpGte, solicitation), against(expr.CmpOpLte, advertisement))
	case plan.InPrefix:
		return p.prefix(s)
	case plan.SetMark:
		if err := p.lookUp(s.Fields, s.Map, []plan.Type{plan.Mark}, &expr.Lookup{IsDestRegSet: true, DestRegister: register(0)}); err != nil {
			return err
		}
		p.emit(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register(0)})
	case plan.UpdateMap:
		return p.dynamic(s.Fields, s.Map, unix.NFT_DYNSET_OP_UPDATE, s.Timeout)
	case plan.DeleteFromMap:
		const remove = 2 // NFT_DYNSET_OP_DELETE
		return p.dynamic(s.Fields, s.Map, remove, 0)
	case plan.DNAT:
		return p.dnat(s)
	case plan.Masquerade:
		p.emit(&expr.Masq{FullyRandom: true})
	case plan.SNAT:
		return p.snat(s)
	case plan.NoTrack:
		p.emit(&expr.Notrack{})
	case plan.Verdict:
		v, err := parseVerdict(string(s))
		if err != nil {
			return err
		}
		p.emit(&v)
	case plan.Counter:
		p.emit(&expr.Counter{})
	default:
		return fmt.Errorf("no statement is a %T", s)
	}
	return nil
}

func (p *program) ctState(s plan.CtState) error {
	bits := map[string]uint32{
		"invalid":     expr.CtStateBitINVALID,
		"established": expr.CtStateBitESTABLISHED,
		"related":     expr.CtStateBitRELATED,
		"new":         expr.CtStateBitNEW,
	}
	var mask uint32
	for _, word := range s {
		if bits[word] == 0 {
			return fmt.Errorf("no connection state is called %q", word)
		}
		mask |= bits[word]
	}
	if mask == 0 {
		return fmt.Errorf("no connection state is named")
	}
	p.emit(&expr.Ct{Key: expr.CtKeySTATE, Register: register(0)}, masked(hostOrder(mask)), against(expr.CmpOpNeq, hostOrder(0)...))
	return nil
}

// device matches a name: all 16 bytes of it, or its beginning.
func (p *program) device(s plan.Interface) error {
	if s.Field != plan.InInterface && s.Field != plan.OutInterface {
		return fmt.Errorf("field %q is not an interface", s.Field)
	}
	name, wildcard := strings.CutSuffix(s.Name, "*")
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return fmt.Errorf("an interface name has 1 to %d characters before a *", unix.IFNAMSIZ-1)
	}
	data := []byte(name)
	if !wildcard {
		data = []byte(plan.KeyOf(name))
	}
	p.emit(sources[s.Field].load(register(0)), against(expr.CmpOpEq, data...))
	return nil
}

// wantFamily lets only packets of a family on. nft lists a check that a later
// expression implies together with that expression.
func (p *program) wantFamily(family int) error {
	number, ok := map[int]byte{4: unix.NFPROTO_IPV4, 6: unix.NFPROTO_IPV6}[family]
	switch {
	case !ok:
		return fmt.Errorf("no IP family is %d", family)
	case p.family == family:
		return nil
	case p.family != 0:
		return fmt.Errorf("wants IPv%d where only IPv%d gets", family, p.family)
	}
	p.family = family
	p.emit(meta(expr.MetaKeyNFPROTO)(register(0)), against(expr.CmpOpEq, number))
	return nil
}

func (p *program) prefix(s plan.InPrefix) error {
	src, err := sourceOf(s.Field)
	if err != nil {
		return err
	}
	addr := s.Prefix.Masked().Addr()
	if !s.Prefix.IsValid() || src.kind != map[bool]plan.Type{true: plan.IPv4Addr, false: plan.IPv6Addr}[addr.Is4()] {
		return fmt.Errorf("no prefix of the field's family")
	}
	if src.family != 0 {
		if err := p.wantFamily(src.family); err != nil {
			return err
		}
	}
	op := expr.CmpOpEq
	if s.Not {
		op = expr.CmpOpNeq
	}
	p.emit(src.load(register(0)))
	if s.Prefix.Bits() < addr.BitLen() {
		p.emit(masked(netmask(s.Prefix)))
	}
	p.emit(against(op, addr.AsSlice()...))
	return nil
}

func netmask(p netip.Prefix) []byte {
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

// load puts a set's key into registers, beginning with the first, and returns
// the index of the register after it.
func (p *program) load(fields plan.Concat, set plan.Set) (next int, err error) {
	types := make([]plan.Type, len(fields))
	srcs := make([]source, len(fields))
	for i, f := range fields {
		if srcs[i], err = sourceOf(f); err != nil {
			return 0, err
		}
		types[i] = srcs[i].kind
		if srcs[i].family == 0 {
			continue
		}
		// Before the first field: the check uses a register, too.
		if err := p.wantFamily(srcs[i].family); err != nil {
			return 0, err
		}
	}
	if !slices.Equal(types, set.Key) {
		return 0, fmt.Errorf("looks up %s in a set of %s", plan.Set{Key: types}, plan.Set{Key: set.Key})
	}
	for _, s := range srcs {
		if next+(s.size+3)/4 > registers {
			return 0, fmt.Errorf("a key of more than %d bytes", 4*registers)
		}
		p.emit(s.load(register(next)))
		next += (s.size + 3) / 4
	}
	return next, nil
}

// lookUp looks fields up in a set, or in a map if value is not nil.
func (p *program) lookUp(fields plan.Concat, name string, value []plan.Type, l *expr.Lookup) error {
	set, ok := p.set(name)
	if !ok {
		return fmt.Errorf("set %s is not in the plan", name)
	}
	if value != nil && !slices.Equal(set.Value, value) {
		return fmt.Errorf("%s is not a map to %s", name, plan.Set{Key: value})
	}
	if _, err := p.load(fields, set); err != nil {
		return err
	}
	l.SetName, l.SourceRegister = name, register(0)
	p.emit(l)
	return nil
}

// dynamic updates or deletes an entry whose data is the packet's mark.
func (p *program) dynamic(fields plan.Concat, name string, operation uint32, timeout time.Duration) error {
	set, ok := p.set(name)
	if !ok {
		return fmt.Errorf("map %s is not in the plan", name)
	}
	if !set.Dynamic || !slices.Equal(set.Value, []plan.Type{plan.Mark}) {
		return fmt.Errorf("%s is not a dynamic map to mark", name)
	}
	if timeout < 0 || timeout%time.Second != 0 {
		return fmt.Errorf("timeout %s is not a number of whole seconds", timeout)
	}
	next, err := p.load(fields, set)
	if err != nil {
		return err
	}
	if next >= registers {
		return fmt.Errorf("a key of more than %d bytes", 4*(registers-1))
	}
	p.emit(meta(expr.MetaKeyMARK)(register(next)), &expr.Dynset{
		SrcRegKey: register(0), SrcRegData: register(next), SetName: name, Operation: operation, Timeout: timeout,
	})
	return nil
}

func (p *program) dnat(s plan.DNAT) error {
	address, size, family := plan.IPv4Addr, 1, uint32(unix.NFPROTO_IPV4)
	if s.Family == 6 {
		address, size, family = plan.IPv6Addr, 4, unix.NFPROTO_IPV6
	}
	if err := p.wantFamily(s.Family); err != nil {
		return err
	}
	to := &expr.Lookup{IsDestRegSet: true, DestRegister: register(0)}
	if err := p.lookUp(s.Fields, s.Map, []plan.Type{address, plan.InetService}, to); err != nil {
		return err
	}
	p.emit(&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: register(0), RegProtoMin: register(size)})
	return nil
}

func (p *program) snat(s plan.SNAT) error {
	family, number := 4, uint32(unix.NFPROTO_IPV4)
	switch {
	case !s.To.IsValid():
		return fmt.Errorf("no address")
	case s.To.Is6():
		family, number = 6, unix.NFPROTO_IPV6
	}
	if err := p.wantFamily(family); err != nil {
		return err
	}
	p.emit(&expr.Immediate{Register: register(0), Data: s.To.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: number, RegAddrMin: register(0), FullyRandom: s.Random})
	return nil
}

// message is the request to add the rule to a chain's end.
func (r rule) message(chain string) message {
	a := objectName(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, chain).nest(unix.NFTA_RULE_EXPRESSIONS, r.code)
	if r.comment != "" {
		a = a.bytes(unix.NFTA_RULE_USERDATA, userdata.AppendString(nil, userdata.TypeComment, r.comment))
	}
	return message{unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE | unix.NLM_F_APPEND, a}
}
