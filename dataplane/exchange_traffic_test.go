package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/testnet"
)

// flood sends packets that must not arrive, by UDP and TCP, over both families.
type flood struct {
	stopped       atomic.Bool
	senders       sync.WaitGroup
	receivers     sync.WaitGroup
	sent, arrived atomic.Int64
	fds           []int
}

// startFlood sends from one namespace, and counts in another.
func startFlood(t *testing.T, from, to *testnet.NS, where target) *flood {
	f := &flood{}
	for _, text := range where.addrs {
		addr := netip.MustParseAddr(text)
		to.Do(func() {
			f.count(t, addr, unix.IPPROTO_UDP, where.port)
			f.count(t, addr, unix.IPPROTO_TCP, where.port)
		})
		f.send(from, func() error { return sendDatagrams(f, addr, where.port) }, t)
		f.send(from, func() error { return sendSYNs(f, addr, where.port) }, t)
	}
	return f
}

func (f *flood) send(from *testnet.NS, work func() error, t *testing.T) {
	f.senders.Go(func() {
		from.Do(func() {
			if err := work(); err != nil {
				t.Errorf("send: %v", err)
			}
		})
	})
}

// count counts what arrives at a port, whether or not a program listens there.
func (f *flood) count(t *testing.T, addr netip.Addr, protocol, port int) {
	fd, err := unix.Socket(family(addr), unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	}
	if err != nil {
		t.Fatal(err)
	}
	f.fds = append(f.fds, fd)
	f.receivers.Go(func() {
		b := make([]byte, 2048)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if errors.Is(err, unix.EAGAIN) && f.stopped.Load() {
				return
			}
			if err != nil {
				continue
			}
			packet := b[:n]
			if addr.Is4() {
				packet = packet[int(packet[0]&15)*4:] // raw IPv4 sockets give the header, too
			}
			if int(binary.BigEndian.Uint16(packet[2:])) == port {
				f.arrived.Add(1)
			}
		}
	})
}

// meets returns when some more were sent, so that each change meets some.
func meets(t *testing.T, sent *atomic.Int64, more int64) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	again := time.NewTicker(100 * time.Microsecond)
	defer again.Stop()
	for from := sent.Load(); sent.Load() < from+more; {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("not even %d were sent in 30 s", more)
		}
	}
}

// stop ends the flood when all that was sent had its time to arrive.
func (f *flood) stop() (sent, arrived int64) {
	if f == nil {
		return 0, 0
	}
	f.stopped.Store(true)
	f.senders.Wait()
	f.receivers.Wait()
	for _, fd := range f.fds {
		unix.Close(fd)
	}
	return f.sent.Load(), f.arrived.Load()
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// sendDatagrams uses one unconnected socket: refusals do not stop it.
func sendDatagrams(f *flood, addr netip.Addr, port int) error {
	fd, err := unix.Socket(family(addr), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := sockaddr(addr, port)
	for !f.stopped.Load() {
		if unix.Sendto(fd, []byte("?"), 0, to) == nil {
			f.sent.Add(1)
		}
	}
	return nil
}

// sendSYNs begins a connection with each socket and gives it up.
func sendSYNs(f *flood, addr netip.Addr, port int) error {
	to := sockaddr(addr, port)
	for !f.stopped.Load() {
		fd, err := unix.Socket(family(addr), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, to); errors.Is(err, unix.EINPROGRESS) {
			f.sent.Add(1)
		}
		unix.Close(fd)
	}
	return nil
}

// probes are new connections, one after the other, that must all succeed.
type probes struct {
	stopped     atomic.Bool
	running     sync.WaitGroup
	tried, lost atomic.Int64
}

const (
	// probeTimeout is less than the second after which TCP sends a SYN again.
	probeTimeout = 800 * time.Millisecond
	probeEvery   = 2 * time.Millisecond
)

// startProbes tries connections over TCP and UDP and over both families.
func startProbes(t *testing.T, client *testnet.NS, where target) *probes {
	if where.port == 0 {
		return nil
	}
	p := &probes{}
	for _, addr := range where.addrs {
		for _, network := range []string{"tcp", "udp"} {
			p.running.Go(func() {
				client.Do(func() {
					pace := time.NewTicker(probeEvery)
					defer pace.Stop()
					for ; !p.stopped.Load(); <-pace.C {
						p.tried.Add(1)
						if err := ask(network, net.JoinHostPort(addr, fmt.Sprint(where.port))); err != nil {
							p.lost.Add(1)
						}
					}
				})
			})
		}
	}
	return p
}

// ask makes a connection and waits for one byte.
func ask(network, addr string) error {
	c, err := net.DialTimeout(network, addr, probeTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(probeTimeout))
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
	} else {
		// No TIME_WAIT, of which there would be more than there are ports.
		c.(*net.TCPConn).SetLinger(0)
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

func (p *probes) stop() (tried, lost int) {
	if p == nil {
		return 0, 0
	}
	p.stopped.Store(true)
	p.running.Wait()
	return int(p.tried.Load()), int(p.lost.Load())
}

// serve answers each connection and each datagram with a byte.
func serve(t *testing.T, ns *testnet.NS, ports ...int) {
	for _, port := range ports {
		var l net.Listener
		var u net.PacketConn
		ns.Do(func() {
			var err error
			if l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			if u, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { u.Close() })
		})
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Write([]byte("!"))
				c.Close()
			}
		}()
		go func() {
			b := make([]byte, 1)
			for {
				_, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo(b, from)
			}
		}()
	}
}
