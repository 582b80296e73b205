package cni

import (
	"context"
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

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/cni/client"
)

// How long things may take. The answer leaves before the client gives up.
const (
	answerTimeout = (client.Timeout - 10) * time.Second
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
func (s *server) handle(serving context.Context, conn net.Conn) {
	defer conn.Close()
	defer drain(conn)
	ctx, cancel := context.WithTimeout(serving, answerTimeout)
	defer cancel()
	start := time.Now()
	req, err := readRequest(conn)
	if err != nil {
		s.reply(conn, req, reply{failure: fail(client.CodeDecode, "can't decode the request", err.Error())}, start)
		return
	}
	if req.Command != client.Del && req.Command != client.GC {
		go cancelOnHangUp(conn, cancel)
	}
	unlock, err := s.lock(ctx, req)
	if err != nil {
		s.reply(conn, req, reply{failure: errorReply(req.Command, "", err)}, start)
		return
	}
	defer unlock()
	if hungUp(conn) {
		// Done late, DEL and GC would take down what the runtime has attached since
		// it gave up waiting.
		s.reply(conn, req, reply{failure: fail(client.CodeTryAgainLater, "nobody waits for the answer any more", "it was not begun")}, start)
		return
	}
	answer := answer(ctx, req, s.attacher)
	if req.Command == client.Add && answer.failure != nil && serving.Err() != nil {
		answer.handOver = true // this agent ends
	}
	err = s.reply(conn, req, answer, start)
	if err == nil || req.Command != client.Add || answer.failure != nil {
		return
	}
	// The runtime has killed the client, and takes for failed what is done. Its
	// DEL may even have come first, if this request lay waiting meanwhile.
	if err := s.attacher.Detach(context.WithoutCancel(ctx), req.id()); err != nil {
		s.log.Error("undo ADD, whose answer nobody took", "container", req.ContainerID, "err", err)
	}
}

// reply writes the answer, and what became of the request to the log.
func (s *server) reply(conn net.Conn, req request, answer reply, start time.Time) error {
	s.report(req, answer, time.Since(start))
	err := conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = conn.Write(answer.frame())
	}
	if err != nil {
		s.log.Warn("twill-cni did not wait for the answer", "command", req.Command, "container", req.ContainerID, "err", err)
	}
	return err
}

// lock keeps the commands of one container apart.
func (s *server) lock(ctx context.Context, req request) (unlock func(), err error) {
	if req.Command == client.GC || req.Command == client.Status {
		return func() {}, nil
	}
	unlock, err = s.locks.lock(ctx, req.ContainerID)
	if err != nil {
		return nil, fmt.Errorf("%w: another command for the container is still under way", ErrTryAgain)
	}
	return unlock, nil
}

// cancelOnHangUp ends the work when the client is gone: the runtime has killed
// it, and will not learn of a success. (What cleans up goes on.) A client sends
// nothing after its request, so that reading only ends when it, or we, hang up.
func cancelOnHangUp(conn net.Conn, cancel func()) {
	_, _ = io.Copy(io.Discard, conn)
	cancel()
}

// hungUp says whether the client is gone, and not just has nothing more to send.
func hungUp(conn net.Conn) bool {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	poll := []unix.PollFd{{}}
	err = raw.Control(func(fd uintptr) {
		poll[0].Fd = int32(fd)
		_, _ = unix.Poll(poll, 0)
	})
	return err == nil && poll[0].Revents&unix.POLLHUP != 0
}

// drain reads what comes after the request, or is left of a bad one: closing a
// unix socket with unread bytes would make the client lose the answer.
func drain(conn net.Conn) {
	if c, ok := conn.(*net.UnixConn); ok && c.CloseWrite() == nil {
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 16*client.MaxMessage))
	}
}

func (s *server) report(req request, answer reply, took time.Duration) {
	log := s.log.With("command", req.Command, "container", req.ContainerID, "ifname", req.IfName, "took", took)
	switch {
	case answer.failure != nil && req.Command != client.Status: // which is asked all the time
		log.Warn("cni command failed", "code", answer.failure.Code, "err", answer.failure.Error())
	case req.Command == client.Add || req.Command == client.Del:
		log.Info("cni command done")
	default:
		log.Debug("cni command done", "ok", answer.failure == nil)
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
	free := func() { <-h.token; leave() }
	// One that is free is had even if ctx has ended: select would draw lots, and
	// tell of another command that is not there.
	select {
	case h.token <- struct{}{}:
		return free, nil
	default:
	}
	select {
	case h.token <- struct{}{}:
		return free, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
