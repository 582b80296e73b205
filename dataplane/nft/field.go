package nft

import (
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

// source says how a field gets into a register.
type source struct {
	kind   plan.Type
	size   int // bytes
	family int // of packets that have the field; 0: any
	load   func(register uint32) expr.Any
}

// registers is the number of 4-byte registers.
const registers = 16

// register is the kernel's number of the 4-byte register at an index. Where
// one of the old 16-byte registers begins, the kernel lists that one's number.
func register(index int) uint32 {
	if index%4 == 0 {
		return uint32(unix.NFT_REG_1 + index/4)
	}
	return uint32(unix.NFT_REG32_00 + index)
}

// offsetsOf are the places of addresses in their headers (RFC 791 §3.1, RFC
// 8200 §3) and of ports, which TCP, UDP and SCTP share.
const (
	source4, destination4 = 12, 16
	source6, destination6 = 8, 24
	sourcePort            = 0
	destinationPort       = 2
)

var sources = map[plan.Field]source{
	plan.SrcIP4:       {plan.IPv4Addr, 4, 4, payload(expr.PayloadBaseNetworkHeader, source4, 4)},
	plan.DstIP4:       {plan.IPv4Addr, 4, 4, payload(expr.PayloadBaseNetworkHeader, destination4, 4)},
	plan.SrcIP6:       {plan.IPv6Addr, 16, 6, payload(expr.PayloadBaseNetworkHeader, source6, 16)},
	plan.DstIP6:       {plan.IPv6Addr, 16, 6, payload(expr.PayloadBaseNetworkHeader, destination6, 16)},
	plan.L4Proto:      {plan.InetProto, 1, 0, meta(expr.MetaKeyL4PROTO)},
	plan.DstPort:      {plan.InetService, 2, 0, payload(expr.PayloadBaseTransportHeader, destinationPort, 2)},
	plan.SrcPort:      {plan.InetService, 2, 0, payload(expr.PayloadBaseTransportHeader, sourcePort, 2)},
	plan.InInterface:  {plan.IfName, 16, 0, meta(expr.MetaKeyIIFNAME)},
	plan.OutInterface: {plan.IfName, 16, 0, meta(expr.MetaKeyOIFNAME)},
	plan.PacketMark:   {plan.Mark, 4, 0, meta(expr.MetaKeyMARK)},
	// The kernel itself stops a rule that asks a connection for an address of
	// the other family.
	plan.OrigDstIP4:  {plan.IPv4Addr, 4, 0, original(unix.NFT_CT_DST_IP)},
	plan.OrigDstIP6:  {plan.IPv6Addr, 16, 0, original(unix.NFT_CT_DST_IP6)},
	plan.OrigDstPort: {plan.InetService, 2, 0, original(unix.NFT_CT_PROTO_DST)},
}

func payload(base expr.PayloadBase, offset, size uint32) func(uint32) expr.Any {
	return func(r uint32) expr.Any {
		return &expr.Payload{DestRegister: r, Base: base, Offset: offset, Len: size}
	}
}

func meta(key expr.MetaKey) func(uint32) expr.Any {
	return func(r uint32) expr.Any { return &expr.Meta{Key: key, Register: r} }
}

func original(key expr.CtKey) func(uint32) expr.Any {
	return func(r uint32) expr.Any { return &expr.Ct{Key: key, Register: r} }
}

// sourceOf finds a field's source.
func sourceOf(f plan.Field) (source, error) {
	if s, ok := sources[f]; ok {
		return s, nil
	}
	if n, ok := f.Random(); ok && n > 0 {
		return source{plan.Mark, 4, 0, func(r uint32) expr.Any {
			return &expr.Numgen{Register: r, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM}
		}}, nil
	}
	return source{}, fmt.Errorf("no field is called %q", f)
}
