package route_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

func TestPodsReachEachOther(t *testing.T) {
	for name, join := range map[string]func(a, b *node){
		"vxlan": func(a, b *node) { a.planTunnel(false); a.viaTunnel(b, false) },
		"vxlan on IPv6": func(a, b *node) {
			a.planTunnel(true)
			a.viaTunnel(b, true)
		},
		"host-gw": func(a, b *node) { a.direct(b) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := twoNodes(t)
			join(a, b)
			join(b, a)
			a.apply()
			b.apply()
			a.settled()
			b.settled()
			a.serve()
			b.serve()
			reaches(t, a.pod, b)
			reaches(t, b.pod, a)
			reaches(t, a.ns, b)
			reaches(t, a.ns, a)
			a.open() // a new process finds everything as it should be
			a.settled()
		})
	}
}

// The path carries what the pods' MTU promises, and not a byte more.
func TestMTU(t *testing.T) {
	a, b := twoNodes(t)
	for _, n := range [][2]*node{{a, b}, {b, a}} {
		n[0].planTunnel(false)
		n[0].viaTunnel(n[1], false)
		n[0].apply()
	}
	b.serve()
	for _, v6 := range []bool{false, true} {
		c := dial(t, a.pod, "udp", b.podAddr(v6)).(*net.UDPConn)
		_ = c.SetDeadline(time.Now().Add(patience))
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		level, option, headers := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, 28
		if v6 {
			level, option, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, 48
		}
		if err := raw.Control(func(fd uintptr) {
			if err := unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, 1450-headers)); err != nil {
			t.Fatal(err)
		}
		if size, err := c.Read(make([]byte, 2048)); err != nil || size != 1450-headers {
			t.Errorf("v6 %v: a full packet: %d bytes, %v", v6, size, err)
		}
		if _, err := c.Write(make([]byte, 1450-headers+1)); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("v6 %v: one byte more: %v, want EMSGSIZE", v6, err)
		}
	}
}

// pinger sends a numbered datagram each millisecond and counts the echoes.
type pinger struct {
	conn     net.Conn
	stop     chan struct{}
	sending  sync.WaitGroup
	mu       sync.Mutex
	sent     uint32
	received map[uint32]bool
}

func ping(t testing.TB, from *node, to netip.Addr) *pinger {
	p := &pinger{conn: dial(t, from.pod, "udp", to), stop: make(chan struct{}), received: map[uint32]bool{}}
	p.sending.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-tick.C:
			}
			p.mu.Lock()
			p.sent++
			seq := p.sent
			p.mu.Unlock()
			_, _ = p.conn.Write(binary.BigEndian.AppendUint32(nil, seq)) // a refusal counts as a loss
		}
	})
	go func() {
		buf := make([]byte, 16)
		for {
			n, err := p.conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n == 4 {
				p.mu.Lock()
				p.received[binary.BigEndian.Uint32(buf)] = true
				p.mu.Unlock()
			}
		}
	}()
	return p
}

func (p *pinger) counts() (sent, received int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.sent), len(p.received)
}

// more waits until some more datagrams have come back.
func (p *pinger) more(t testing.TB, n int) {
	t.Helper()
	_, before := p.counts()
	eventually(t, "echoes", func() bool { _, now := p.counts(); return now >= before+n })
}

// finish stops sending and fails if an echo did not come.
func (p *pinger) finish(t testing.TB) {
	t.Helper()
	close(p.stop)
	p.sending.Wait()
	eventually(t, "all echoes", func() bool { sent, received := p.counts(); return sent == received })
	sent, _ := p.counts()
	t.Logf("%d sent, all came back", sent)
}

func TestSwitchingTheBackEndLosesNothing(t *testing.T) {
	a, b := twoNodes(t)
	pairs := [][2]*node{{a, b}, {b, a}}
	for _, n := range pairs {
		n[0].planTunnel(false)
		n[0].viaTunnel(n[1], false)
		n[0].apply()
	}
	b.serve()
	pings := []*pinger{ping(t, a, b.podAddr(false)), ping(t, a, b.podAddr(true))}
	wait := func() {
		t.Helper()
		for _, p := range pings {
			p.more(t, 50)
		}
	}
	for range 5 {
		wait()
		for _, n := range pairs {
			n[0].direct(n[1])
			n[0].apply()
			wait()
		}
		for _, n := range pairs {
			n[0].viaTunnel(n[1], false)
			n[0].apply()
			wait()
		}
	}
	// For good: the device goes as well.
	for _, n := range pairs {
		n[0].direct(n[1])
		n[0].apply()
	}
	for _, n := range pairs {
		n[0].plan.Links.Delete(plan.VXLANLink)
		n[0].plan.Addresses.Delete(plan.AddressKey{Link: plan.VXLANLink, Prefix: netip.PrefixFrom(n[0].block(false).Addr(), 32)})
		n[0].plan.Sysctls.Delete("net/ipv4/conf/" + plan.VXLANLink + "/rp_filter")
		n[0].apply()
	}
	wait()
	for _, p := range pings {
		p.finish(t)
	}
	a.settled()
	b.settled()
}
