package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twill-net/twill/lab/space"
)

// floodPort is where flooders send from and to.
const floodPort = 7777

// flooder sends datagrams without a pause, and counts those that it gets. Each
// tells the number of the start that it is about.
type flooder struct {
	name  string
	addrs []netip.Addr // may be those that it is going to have
	conn  *net.UDPConn
	sent  atomic.Int64

	mu  sync.Mutex
	got map[flooded]int
}

// flooded is what datagrams have in common.
type flooded struct {
	start uint64
	from  netip.Addr
}

// newFlooder opens a socket in the network of a task, which need not have any
// device.
func newFlooder(name, task string, addrs []netip.Addr) (*flooder, error) {
	f := &flooder{name: name, addrs: addrs, got: map[flooded]int{}}
	err := space.In(task, func() (err error) {
		f.conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: floodPort})
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := f.conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n == 8 {
				f.mu.Lock()
				f.got[flooded{binary.BigEndian.Uint64(b), from.Addr().Unmap()}]++
				f.mu.Unlock()
			}
		}
	}()
	return f, nil
}

// close closes the socket; what it has got can still be asked for.
func (f *flooder) close() { f.conn.Close() }

// flood sends to all addresses of others until ctx ends.
func (f *flooder) flood(ctx context.Context, start uint64, others ...*flooder) {
	packet := binary.BigEndian.AppendUint64(nil, start)
	for ctx.Err() == nil {
		for _, other := range others {
			for _, a := range other.addrs {
				// There may be no route yet, or no longer.
				if _, err := f.conn.WriteToUDPAddrPort(packet, netip.AddrPortFrom(a, floodPort)); err == nil {
					f.sent.Add(1)
				}
			}
		}
		runtime.Gosched()
	}
}

// from is how many packets of a start came from each address of another one, the
// least and the most.
func (f *flooder) from(start uint64, other *flooder) (least, most int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, a := range other.addrs {
		n := f.got[flooded{start, a}]
		if i == 0 {
			least = n
		}
		least, most = min(least, n), max(most, n)
	}
	return least, most
}

// floods is a pod and its peers that send to each other.
type floods struct {
	start uint64
	pod   *flooder
	peers []*flooder
	stop  func()
}

func flood(start uint64, pod *flooder, peers []*flooder) floods {
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { pod.flood(ctx, start, peers...) })
	for _, peer := range peers {
		wait.Go(func() { peer.flood(ctx, start, pod) })
	}
	return floods{start, pod, peers, func() { cancel(); wait.Wait() }}
}

// nonePassed says which packets have passed, all of which must not.
func (f floods) nonePassed() error {
	for _, peer := range f.peers {
		if _, n := f.pod.from(f.start, peer); n > 0 {
			return fmt.Errorf("%d packets came to the pod from %s", n, peer.name)
		}
		if _, n := peer.from(f.start, f.pod); n > 0 {
			return fmt.Errorf("%d packets of the pod came to %s", n, peer.name)
		}
	}
	return nil
}

// allPass waits until packets have passed both ways in each family.
func (f floods) allPass() error {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(patience); ; <-poll.C {
		var missing error
		for _, peer := range f.peers {
			if n, _ := f.pod.from(f.start, peer); n == 0 {
				missing = fmt.Errorf("no packet came to the pod from %s by one of %v", peer.name, peer.addrs)
			}
			if n, _ := peer.from(f.start, f.pod); n == 0 {
				missing = fmt.Errorf("no packet of the pod came to %s by one of %v", peer.name, f.pod.addrs)
			}
		}
		if missing == nil || time.Now().After(deadline) {
			return missing
		}
	}
}
