// Package attribute reads lists of netlink attributes: length, type, value, each
// padded to 4 bytes. It takes lengths that lie, which the parsers of the netlink
// libraries do not.
package attribute

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// All iterates over the attributes' types, without flags, and values. It ends
// where the list is cut short.
func All(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for b := b; len(b) >= unix.NLA_HDRLEN; {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.NLA_HDRLEN || size > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.NLA_HDRLEN:size:size]) {
				return
			}
			b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
		}
	}
}

// Uint32 is a number in the machine's byte order, 0 if the value is too short.
func Uint32(value []byte) uint32 {
	if len(value) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(value)
}

// Text is a value without the NUL at its end.
func Text(value []byte) string {
	if n := len(value); n > 0 && value[n-1] == 0 {
		value = value[:n-1]
	}
	return string(value)
}
