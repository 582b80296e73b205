package nft

import (
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzMessages reads datagrams as they come from nf_tables: answers of listings,
// errors and notifications. The seeds are what a kernel sent.
func FuzzMessages(f *testing.F) {
	f.Fuzz(func(t *testing.T, datagram []byte) {
		messages := parseMessages(datagram)
		for _, m := range messages {
			if _, offset := parseError(m); offset < 0 {
				t.Errorf("an error at offset %d", offset)
			}
			if len(m.Data) < nfgenHeader {
				continue
			}
			a := attributes(m.Data[nfgenHeader:])
			switch m.Header.Type & 0xff {
			case unix.NFT_MSG_NEWCHAIN:
				parseBase(a)
			case unix.NFT_MSG_NEWRULE:
				parseRule(a)
			case unix.NFT_MSG_NEWSET:
				parseDefinition(a)
			}
		}
		concerned(messages)
	})
}

// FuzzElements reads a set's description and two answers to a listing of its
// elements, the second as of a hash table that grew meanwhile. Keys are as long
// as the set's, or longer where the kernel says so; ranges end where they begin,
// or after.
func FuzzElements(f *testing.F) {
	f.Fuzz(func(t *testing.T, description, answer []byte) {
		_, d := parseDefinition(description)
		l := newListing(d)
		l.add(answer)
		l.add(answer)
		for key, packed := range l.finish() {
			e := packed.Element()
			if len(key) < d.keySize || d.interval() && len(e.End) < d.keySize || e.Value != "" && len(e.Value) < d.valueSize {
				t.Errorf("%+v: key %x, %+v", d, key, e)
			}
			ch := change{kind: kindElement, name: "s", key: key, oldElement: packed, definition: &d}
			if ch.String() == "" {
				t.Error("an element without words")
			}
			appendElement(nil, &d, key, packed) // as for its removal
		}
	})
}
