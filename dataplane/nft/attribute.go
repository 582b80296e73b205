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

func (a attributes) bytes(kind uint16, value []byte) attributes {
	a = binary.NativeEndian.AppendUint16(a, uint16(4+len(value)))
	a = binary.NativeEndian.AppendUint16(a, kind)
	a = append(a, value...)
	for len(a)%4 != 0 {
		a = append(a, 0)
	}
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
