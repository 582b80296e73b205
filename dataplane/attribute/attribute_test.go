package attribute

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

func list(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.NLA_HDRLEN+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func TestAll(t *testing.T) {
	b := append(list(1, []byte("eth0\x00")), list(2|unix.NLA_F_NESTED, list(3, []byte{1, 0, 0, 0}))...)
	b = append(b, list(4, nil)...)
	b = append(b, 200, 0, 9, 0) // says that it is longer than the rest
	var kinds []uint16
	for kind, value := range All(b) {
		kinds = append(kinds, kind)
		switch kind {
		case 1:
			if Text(value) != "eth0" {
				t.Errorf("name %q", Text(value))
			}
		case 2:
			for _, inner := range All(value) {
				if binary.NativeEndian.Uint32([]byte{1, 0, 0, 0}) != Uint32(inner) {
					t.Errorf("number %d", Uint32(inner))
				}
			}
		}
	}
	if len(kinds) != 3 || kinds[1] != 2 {
		t.Errorf("kinds %v", kinds)
	}
	if Uint32([]byte{1, 2}) != 0 || Text(nil) != "" || Text([]byte{0}) != "" {
		t.Error("short values are not empty")
	}
}

// FuzzAll reads anything, nested as deep as it goes. Values lie in the list, one
// after the other.
func FuzzAll(f *testing.F) {
	f.Add(append(list(1, []byte("lo\x00")), list(2, list(3, list(4, nil)))...))
	f.Add([]byte{5, 0, 1, 0, 7}) // the last one without padding
	f.Fuzz(func(t *testing.T, b []byte) { walk(t, b, 0) })
}

func walk(t *testing.T, b []byte, depth int) {
	rest := len(b)
	for kind, value := range All(b) {
		if rest -= unix.NLA_HDRLEN + len(value); rest < 0 {
			t.Fatalf("values are longer than the list of %d bytes", len(b))
		}
		if kind&(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) != 0 || !bytes.Contains(b, value) {
			t.Fatalf("kind %d, value %x of %x", kind, value, b)
		}
		Uint32(value)
		Text(value)
		if depth < 8 {
			walk(t, value, depth+1)
		}
	}
}
