package faults

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/test/testlab"
)

// delay is what each request to a slow store waits.
const delay = 500 * time.Millisecond

// TestStoreSlow delays what every agent and the controller say to etcd.
func TestStoreSlow(t *testing.T) {
	t.Parallel() // it waits more than it works
	needNft(t)
	s := newScene(t, lab.Config{})
	e := s.underLoad(t, fmt.Sprintf("etcd answers %s late", delay), func() (time.Duration, string) {
		for _, node := range s.Config.NodeNames() {
			s.slowDown(t, node)
		}
		began := time.Now()
		s.start(t, "client-2", "node01", "client")
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("a pod was attached after %s", took)
		}
		s.expect(t, "client-2 -> server-1 server-2\nclient -> client-2", "stranger -> server-1 server-2")
		began = time.Now()
		s.apply(t, isolate("clients", "client"))
		testlab.Eventually(t, patience, func() error { return s.differences("", "client -> client-2") })
		took := time.Since(began) - silence
		s.stop(t, "client-2")
		s.settled(t)
		return took, "a new policy was in force, which took no request"
	})
	e.nothingLost(t)
	for _, node := range s.Config.NodeNames() {
		if s.relayed[node].Load() == 0 {
			t.Errorf("the agent of %s did not take the slow way", node)
		}
		s.at(t, node, "nft delete table ip faults")
	}
	s.settled(t)
	s.asPlanned(t)
}

// TestStoreCutOff lets no packet pass between one node and etcd. The others go on,
// this one keeps what it has, and its own pods start and stop.
func TestStoreCutOff(t *testing.T) {
	t.Parallel() // it waits more than it works
	needNft(t)
	s := newScene(t, lab.Config{})
	e := s.underLoad(t, fmt.Sprintf("etcd out of one node's reach for %s", *outage), func() (time.Duration, string) {
		s.cut(t, "node01")
		again := time.After(*outage)
		s.start(t, "client-2", "node01", "client")
		s.start(t, "client-3", "node02", "client")
		s.apply(t, isolate("strangers", "stranger"))
		s.start(t, "stranger-2", "node02", "stranger")
		// The others have what is new, and node01 lets in nobody whom it does not
		// know.
		s.expect(t, "client-3 -> server-2\nclient client-2 -> server-1", "client-3 -> server-1 stranger-2\nclient-2 -> server-2")
		<-again
		s.join(t, "node01")
		began := time.Now()
		s.expect(t, "client-3 -> server-1 server-2\nclient-2 -> server-2", "")
		took := time.Since(began)
		s.settled(t)
		return took, "it had caught up"
	})
	e.nothingLost(t)
	s.asPlanned(t)
}

// slowDown leads what is for etcd through a relay on the node that holds it up.
// Connections that stand are broken, so that all go this way.
func (s *scene) slowDown(t *testing.T, node string) {
	t.Helper()
	var relay net.Listener
	err := space.In(s.Task(t, lab.Node(node)), func() (err error) {
		relay, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { relay.Close() })
	relayed := new(atomic.Int64)
	s.relayed[node] = relayed
	socket := strings.TrimPrefix(lab.EtcdEndpoint(s.Config.Name), "unix://")
	go func() {
		for {
			from, err := relay.Accept()
			if err != nil {
				return
			}
			relayed.Add(1)
			go pass(from, socket)
		}
	}()
	s.at(t, node, fmt.Sprintf(`nft 'table ip faults {
		chain lead { type nat hook output priority -150; tcp dport 2379 redirect to :%d; }
		chain break { type filter hook output priority 0; tcp dport 2379 ct status ! dnat reject with tcp reset; }
	}'`, relay.Addr().(*net.TCPAddr).Port))
}

// pass relays one connection to a socket, what goes there later by delay.
func pass(from net.Conn, socket string) {
	to, err := net.Dial("unix", socket)
	if err != nil {
		from.Close()
		return
	}
	var closing sync.Once
	hangUp := func() { closing.Do(func() { from.Close(); to.Close() }) }
	go func() {
		_, _ = io.Copy(from, to)
		hangUp()
	}()
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 10_000)
	go func() {
		defer close(pieces)
		for buffer := make([]byte, 64<<10); ; {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			pieces <- piece{time.Now().Add(delay), append([]byte(nil), buffer[:n]...)}
		}
	}()
	for p := range pieces {
		<-time.After(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			break
		}
	}
	hangUp()
	for range pieces {
	}
}
