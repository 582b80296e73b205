package testlab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/lab/tool"
)

// What a probe meets with.
const (
	Open    = "open"
	Refused = "refused"
	Timeout = "timeout"
	// Forbidden is what a node's own datagrams meet with in its output hook,
	// whether they are dropped or rejected there.
	Forbidden = "forbidden"
)

// Probe opens a connection from within a task's network and says what it meets
// with. A new connection comes from a new port, so conntrack knows nothing of
// it.
func Probe(task, network string, to netip.AddrPort, silence time.Duration) string {
	var conn net.Conn
	err := space.In(task, func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), silence)
		defer cancel()
		conn, err = new(net.Dialer).DialContext(ctx, network, to.String())
		return err
	})
	if err == nil {
		defer conn.Close()
		if network == "udp" {
			err = Ask(conn, silence)
		}
	}
	switch {
	case err == nil:
		return Open
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.EPERM):
		return Forbidden
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return Timeout
	}
	return err.Error()
}

// askAgain is after how long a datagram that nobody answered is sent again. The
// kernel sends one destination no more than a rejection a second, once it has had
// its burst (net.ipv4.icmp_ratelimit, RFC 1812 §4.3.2.8): who asks but once may
// never hear that nobody is there.
const askAgain = 1100 * time.Millisecond

// Ask sends a datagram to a lab's web server, which answers it.
func Ask(conn net.Conn, silence time.Duration) error {
	until := time.Now().Add(silence)
	for {
		next := time.Now().Add(askAgain)
		if next.After(until) {
			next = until
		}
		if err := conn.SetDeadline(next); err != nil {
			return err
		}
		if _, err := conn.Write([]byte(tool.AskPage)); err != nil {
			return err
		}
		if _, err := conn.Read(make([]byte, 2048)); !os.IsTimeout(err) || next.Equal(until) {
			return err
		}
	}
}

// Eventually calls f until it returns nil, and says how long that took.
func Eventually(t *testing.T, within time.Duration, f func() error) time.Duration {
	t.Helper()
	began, poll := time.Now(), time.NewTicker(5*time.Millisecond)
	defer poll.Stop()
	for ; ; <-poll.C {
		err := f()
		took := time.Since(began)
		if err == nil {
			return took
		}
		if took > within {
			t.Fatalf("after %s: %v", took.Round(time.Millisecond), err)
		}
	}
}
