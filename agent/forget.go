package agent

import (
	"net/netip"
	"sync"
	"time"

	"github.com/twill-net/twill/dataplane/conntrack"
)

// forgetTogether is for how long pods that go are gathered, so that the kernel
// looks for the connections of all of them at once.
const forgetTogether = 100 * time.Millisecond

// forgetter has the connections of pods that are gone forgotten.
type forgetter struct {
	mu   sync.Mutex
	next *forgetting // is still gathering; nil: nobody waits
}

type forgetting struct {
	addrs []netip.Addr
	done  chan struct{}
	err   error // valid once done is closed
}

// forget returns when the addresses have no connections any more.
func (f *forgetter) forget(addrs []netip.Addr) error {
	f.mu.Lock()
	round := f.next
	if round == nil {
		round = &forgetting{done: make(chan struct{})}
		f.next = round
		time.AfterFunc(forgetTogether, func() { f.take(round) })
	}
	round.addrs = append(round.addrs, addrs...)
	f.mu.Unlock()
	<-round.done
	return round.err
}

func (f *forgetter) take(round *forgetting) {
	f.mu.Lock()
	f.next = nil
	f.mu.Unlock()
	round.err = conntrack.Forget(round.addrs)
	close(round.done)
}
