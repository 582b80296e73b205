package nft

import (
	"encoding/binary"
	"iter"

	"github.com/twill-net/twill/dataplane/attribute"
	"golang.org/x/sys/unix"
)

// attributes is a list of netlink attributes (type, length, value) as it goes
// over the wire. nf_tables has its numbers in network byte order.
type attributes []byte

func (a attributes) bytes(kind uint16, value []byte) attributes { return with(a, kind, value) }

func with[T string | []byte](a attributes, kind uint16, value T) attributes {
	a = a.header(kind, len(value))
	return append(a, value...).padded()
}

// withData adds a value as sets and rules hold it, within NFTA_DATA_VALUE.
func withData[T string | []byte](a attributes, kind uint16, value T) attributes {
	inner := unix.NLA_HDRLEN + (len(value)+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)
	return with(a.header(kind|unix.NLA_F_NESTED, inner), unix.NFTA_DATA_VALUE, value)
}

func (a attributes) header(kind uint16, size int) attributes {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.NLA_HDRLEN+size))
	return binary.NativeEndian.AppendUint16(a, kind)
}

func (a attributes) padded() attributes {
	for len(a)%unix.NLA_ALIGNTO != 0 {
		a = append(a, 0)
	}
	return a
}

// begin starts an attribute that holds others, which end ends: of hundreds of
// thousands, none should be made apart and then copied.
func (a attributes) begin(kind uint16) (begun attributes, at int) {
	return a.header(kind|unix.NLA_F_NESTED, 0), len(a)
}

func (a attributes) end(at int) attributes {
	binary.NativeEndian.PutUint16(a[at:], uint16(len(a)-at))
	return a
}

func (a attributes) text(kind uint16, s string) attributes {
	return a.bytes(kind, append([]byte(s), 0))
}

func (a attributes) u32(kind uint16, v uint32) attributes {
	return a.bytes(kind, binary.BigEndian.AppendUint32(nil, v))
}

func (a attributes) u64(kind uint16, v uint64) attributes {
	return a.bytes(kind, binary.BigEndian.AppendUint64(nil, v))
}

func (a attributes) nest(kind uint16, inner attributes) attributes {
	return a.bytes(kind|unix.NLA_F_NESTED, inner)
}

// all iterates over the attributes' types and values.
func (a attributes) all() iter.Seq2[uint16, attributes] {
	return func(yield func(uint16, attributes) bool) {
		for kind, value := range attribute.All(a) {
			if !yield(kind, value) {
				return
			}
		}
	}
}

// get returns the first attribute of a type, nil if there is none.
func (a attributes) get(kind uint16) attributes {
	for k, v := range a.all() {
		if k == kind {
			return v
		}
	}
	return nil
}

// asText is an attribute's value without the NUL at its end.
func (a attributes) asText() string { return attribute.Text(a) }

// asU32 is 0 for an attribute that is not there.
func (a attributes) asU32() uint32 {
	if len(a) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a)
}

func (a attributes) asU64() uint64 {
	if len(a) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a)
}
