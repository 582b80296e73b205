package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/twill-net/twill/cni/client"
)

// How long things may take. The answer leaves before the client gives up.
const (
	answerTimeout = client.Timeout - 10*time.Second
	readTimeout   = 5 * time.Second
	writeTimeout  = 5 * time.Second
)

// Listen listens on a unix socket at path that only its owner may use. A socket
// file that a dead agent left behind is replaced; that nobody else listens is
// tried first.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen for twill-cni: %w", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listen for twill-cni: another agent listens at %s: stop it first", path)
	}
	if err := removeSocket(path); err != nil {
		return nil, fmt.Errorf("listen for twill-cni: %w", err)
	}
	// The file's mode is that of the socket when it is bound; set before, there
	// is no moment in which others may connect.
	private := func(_, _ string, conn syscall.RawConn) error {
		var err error
		return errors.Join(conn.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }), err)
	}
	l, err := (&net.ListenConfig{Control: private}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for twill-cni: %w", err)
	}
	return l, nil
}

func removeSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is not a socket: remove it, or set another path", path)
	}
	return os.Remove(path)
}

// Serve answers requests until ctx ends; then it closes the listener, tells
// the requests under way to give up, waits for them, and returns nil.
func Serve(ctx context.Context, l net.Listener, a Attacher, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	s := &server{attacher: a, log: log, locks: newLocks()}
	err := s.accept(ctx, l)
	stopped := ctx.Err() != nil
	cancel()
	stop()
	l.Close()
	s.requests.Wait()
	if stopped {
		return nil
	}
	return fmt.Errorf("serve twill-cni: %w", err)
}

type server struct {
	attacher Attacher
	log      *slog.Logger
	locks    *locks
	requests sync.WaitGroup
}

func (s *server) accept(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			// Passes when other requests end.
			s.log.Warn("can't accept a call of twill-cni", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		case err != nil:
			return err
		default:
			s.requests.Go(func() { s.handle(ctx, conn) })
		}
	}
}

// handle answers the one request of a connection.
func (s *server) handle(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var req client.Request
	var reply client.Reply
	start := time.Now()
	err := readRequest(conn, &req)
	if err != nil {
		reply.Error = fail(client.CodeDecode, "can't decode the request", err.Error())
	} else {
		if req.Command != client.Del && req.Command != client.GC {
			go cancelOnHangUp(conn, cancel)
		}
		reply = answer(ctx, req, s.attacher, s.locks)
	}
	s.report(req, reply, time.Since(start))
	if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return
	}
	if err := json.NewEncoder(conn).Encode(reply); err != nil {
		s.log.Warn("twill-cni did not wait for the answer", "command", req.Command, "container", req.ContainerID, "err", err)
	}
	if err != nil {
		drain(conn)
	}
}

func readRequest(conn net.Conn, req *client.Request) error {
	if err := conn.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		return err
	}
	limited := &io.LimitedReader{R: conn, N: client.MaxMessage}
	err := json.NewDecoder(limited).Decode(req)
	if err != nil && limited.N == 0 {
		return fmt.Errorf("it is larger than %d bytes", client.MaxMessage)
	}
	if err != nil {
		return err
	}
	return conn.SetReadDeadline(time.Time{})
}

// cancelOnHangUp ends the work when the client is gone: the runtime has killed
// it, and will not learn of a success. (What cleans up goes on.) A client sends nothing after its
// request, so that reading only ends when it, or we, hang up.
func cancelOnHangUp(conn net.Conn, cancel func()) {
	_, _ = io.Copy(io.Discard, conn)
	cancel()
}

// drain reads what is left of a bad request: closing a unix socket with unread
// bytes would make the client lose the answer.
func drain(conn net.Conn) {
	if c, ok := conn.(*net.UnixConn); ok && c.CloseWrite() == nil {
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 16*client.MaxMessage))
	}
}

func (s *server) report(req client.Request, reply client.Reply, took time.Duration) {
	log := s.log.With("command", req.Command, "container", req.ContainerID, "ifname", req.IfName, "took", took)
	switch {
	case reply.Error != nil && req.Command != client.Status: // which is asked all the time
		log.Warn("cni command failed", "code", reply.Error.Code, "err", reply.Error.Error())
	case req.Command == client.Add || req.Command == client.Del:
		log.Info("cni command done")
	default:
		log.Debug("cni command done", "ok", reply.Error == nil)
	}
}

// locks keeps the commands of one container apart: a runtime that gave up on
// ADD may send DEL while ADD is still being undone.
type locks struct {
	mu   sync.Mutex
	held map[string]*heldLock
}

type heldLock struct {
	token chan struct{}
	users int
}

func newLocks() *locks { return &locks{held: map[string]*heldLock{}} }

// lock waits for the lock of that name and returns the function that frees it.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	h := l.held[name]
	if h == nil {
		h = &heldLock{token: make(chan struct{}, 1)}
		l.held[name] = h
	}
	h.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case h.token <- struct{}{}:
		return func() { <-h.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
