package load

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// resolve looks the host up once, so that the rate asked for is not a load on
// the name server.
func resolve(ctx context.Context, address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return netip.AddrPort{}, err
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(found[0].Unmap(), uint16(number)), nil
}

// reason is an error without the ports in it, so that like errors are counted
// together.
func reason(err error, patience time.Duration) string {
	switch {
	case os.IsTimeout(err):
		return "no answer within " + patience.String()
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "connection reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection ended before the answer"
	}
	var system *os.SyscallError
	if errors.As(err, &system) {
		return system.Error()
	}
	return err.Error()
}

// connections makes a new TCP connection for each request.
type connections struct {
	address  string
	text     []byte
	patience time.Duration
}

func newConnections(ctx context.Context, address string, patience time.Duration) (*connections, error) {
	to, err := resolve(ctx, address)
	if err != nil {
		return nil, err
	}
	// HTTP/1.0: the server closes first, so that the client's ports don't wait
	// a minute for late segments and run out.
	text := fmt.Sprintf("GET / HTTP/1.0\r\nHost: %s\r\n\r\n", address)
	return &connections{to.String(), []byte(text), patience}, nil
}

func (c *connections) request(uint64) error {
	deadline := time.Now().Add(c.patience)
	conn, err := (&net.Dialer{Deadline: deadline}).Dial("tcp", c.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Write(c.text); err != nil {
		return err
	}
	return readAnswer(bufio.NewReader(conn))
}

func (c *connections) close()       {}
func (c *connections) serial() bool { return false }

func readAnswer(r *bufio.Reader) error {
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answered %s", response.Status)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// stream makes one connection for all requests. Once it is broken every later
// request is lost: it is never made anew.
type stream struct {
	conn     net.Conn
	reader   *bufio.Reader
	text     []byte
	patience time.Duration
	broken   error
}

func newStream(ctx context.Context, address string, patience time.Duration) (*stream, error) {
	to, err := resolve(ctx, address)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("GET / HTTP/1.1\r\nHost: %s\r\n\r\n", address)
	return &stream{conn: conn, reader: bufio.NewReader(conn), text: []byte(text), patience: patience}, nil
}

func (s *stream) request(uint64) error {
	if s.broken == nil {
		s.broken = s.exchange()
	}
	return s.broken
}

func (s *stream) exchange() error {
	if err := s.conn.SetDeadline(time.Now().Add(s.patience)); err != nil {
		return err
	}
	if _, err := s.conn.Write(s.text); err != nil {
		return err
	}
	return readAnswer(s.reader)
}

func (s *stream) close()       { s.conn.Close() }
func (s *stream) serial() bool { return true }

// receiveBuffer holds the datagrams of many seconds.
const receiveBuffer = 8 << 20

// Patiently is a net.Dialer's or net.ListenConfig's Control for sockets of both
// ends of a load: what waits for a process that gets no processor must not be
// dropped, or it would count as lost in the network. Where the buffer may not be
// made larger (net.core.rmem_max) it stays as it is.
func Patiently(_, _ string, conn syscall.RawConn) error {
	return conn.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	})
}

// sockets is from how many ports datagrams are sent: as many flows.
const sockets = 8

// datagrams sends numbered datagrams and waits for each to come back.
type datagrams struct {
	conns    []net.Conn
	patience time.Duration

	mu      sync.Mutex
	pending map[uint64]chan struct{}
	refused map[int]error // by socket: an ICMP error that came back
}

func newDatagrams(ctx context.Context, address string, patience time.Duration) (*datagrams, error) {
	to, err := resolve(ctx, address)
	if err != nil {
		return nil, err
	}
	d := &datagrams{patience: patience, pending: map[uint64]chan struct{}{}, refused: map[int]error{}}
	for i := range sockets {
		conn, err := (&net.Dialer{Control: Patiently}).Dial("udp", to.String())
		if err != nil {
			d.close()
			return nil, err
		}
		d.conns = append(d.conns, conn)
		go d.receive(i, conn)
	}
	return d, nil
}

func (d *datagrams) receive(i int, conn net.Conn) {
	buffer := make([]byte, 64)
	for {
		n, err := conn.Read(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		d.mu.Lock()
		if err != nil {
			d.refused[i] = err
		} else if n == 8 {
			seq := binary.BigEndian.Uint64(buffer)
			if answered, ok := d.pending[seq]; ok {
				close(answered)
				delete(d.pending, seq)
			}
		}
		d.mu.Unlock()
	}
}

func (d *datagrams) request(seq uint64) error {
	answered := make(chan struct{})
	d.mu.Lock()
	d.pending[seq] = answered
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.pending, seq)
		d.mu.Unlock()
	}()
	i := int(seq % sockets)
	if _, err := d.conns[i].Write(binary.BigEndian.AppendUint64(nil, seq)); err != nil {
		return err
	}
	timer := time.NewTimer(d.patience)
	defer timer.Stop()
	select {
	case <-answered:
		return nil
	case <-timer.C:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refused[i]; err != nil {
		return err
	}
	return os.ErrDeadlineExceeded
}

func (d *datagrams) close() {
	for _, c := range d.conns {
		c.Close()
	}
}

func (d *datagrams) serial() bool { return false }
