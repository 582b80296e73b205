package conntrack

import "testing"

// FuzzParse reads a connection as a dump has it. The seeds are what a kernel
// answered.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, ok := parse(raw)
		if ok && !(e.destination.Addr().IsValid() && e.replySource.Addr().IsValid()) {
			t.Errorf("%x gives %+v", raw, e)
		}
	})
}
