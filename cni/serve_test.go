package cni

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twill-net/twill/cni/client"
)

func TestSocket(t *testing.T) {
	socket := serve(t, &fakeAttacher{})
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if _, err := Listen(socket); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent: %v", err)
	}
	dir := filepath.Dir(socket)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file in its place: %v", err)
	}
	stale := filepath.Join(dir, "sub", "stale.sock")
	for range 2 {
		l, err := Listen(stale)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as after a crash
		l.Close()
	}
}

func TestParallelCalls(t *testing.T) {
	f := &fakeAttacher{}
	socket := serve(t, f)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			req := addRequest("1.0.0")
			req.ContainerID = fmt.Sprint("c", i)
			for range 5 {
				wantCode(t, call(t, socket, req), 0)
				wantCode(t, call(t, socket, as(req, client.Del)), 0)
			}
		})
	}
	wg.Wait()
	if len(f.attached) != 0 {
		t.Errorf("%d are left", len(f.attached))
	}
}

// A runtime that kills ADD sends DEL: ADD is cancelled, and DEL comes after
// its end.
func TestHangUpCancelsAdd(t *testing.T) {
	begun, undone := make(chan struct{}), make(chan struct{})
	f := &fakeAttacher{block: func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		close(undone)
		return ctx.Err()
	}}
	socket := serve(t, f)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(addRequest("1.0.0").frame()); err != nil {
		t.Fatal(err)
	}
	<-begun
	conn.Close()
	wantCode(t, call(t, socket, as(addRequest("1.0.0"), client.Del)), 0)
	select {
	case <-undone:
	default:
		t.Error("DEL did not wait for ADD")
	}
}

// What cleans up and comes late, because it had to wait or the agent was slow, is
// not done if its caller is gone: the runtime has asked again, and may have attached
// the container anew meanwhile.
func TestLateAndAlone(t *testing.T) {
	for _, command := range []string{client.Del, client.GC} {
		begun, goOn := make(chan struct{}), make(chan struct{})
		f := &fakeAttacher{block: func(context.Context) error { close(begun); <-goOn; return nil }}
		reported := make(chan string, 10)
		s := &server{attacher: f, log: slog.New(slog.NewTextHandler(lines(reported), nil)), locks: newLocks()}
		add, served := socketPair(t)
		s.requests.Go(func() { s.handle(t.Context(), served) })
		if _, err := add.Write(addRequest("1.1.0").frame()); err != nil {
			t.Fatal(err)
		}
		<-begun
		late, conn := socketPair(t)
		if _, err := late.Write(as(addRequest("1.1.0", `"cni.dev/valid-attachments":[]`), command).frame()); err != nil {
			t.Fatal(err)
		}
		late.Close()
		close(goOn)
		if answer := unframe(t, readAll(t, add)); answer.failure != nil {
			t.Fatal(answer.failure)
		}
		<-reported
		s.handle(t.Context(), conn)
		if said := <-reported; !strings.Contains(said, "command="+command) || !strings.Contains(said, "nobody waits") {
			t.Errorf("%s: %s", command, said)
		}
		if _, ok := f.get(podID); !ok {
			t.Errorf("%s that came late has taken down the pod", command)
		}
		s.requests.Wait()
	}
}

// lines sends each line that is written.
type lines chan<- string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		file.Close()
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

func readAll(t *testing.T, conn net.Conn) []byte {
	t.Helper()
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A success that nobody learns of is undone: the runtime's DEL may have come
// before the ADD that it had killed, and found nothing.
func TestAddThatNobodyWaitedFor(t *testing.T) {
	begun, gone := make(chan struct{}), make(chan struct{})
	f := &fakeAttacher{block: func(context.Context) error { close(begun); <-gone; return nil }}
	socket := serve(t, f)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(addRequest("1.0.0").frame()); err != nil {
		t.Fatal(err)
	}
	<-begun
	conn.Close()
	close(gone)
	for deadline := time.Now().Add(10 * time.Second); ; {
		f.mu.Lock()
		detached := f.detached
		f.mu.Unlock()
		if detached > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it stays attached")
		}
		runtime.Gosched()
	}
	wantCode(t, call(t, socket, as(addRequest("1.0.0", `"prevResult":{"interfaces":[{"name":"eth0","sandbox":"n"}]}`), client.Check)), client.CodeUnknownContainer)
}

func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLocks()
		unlock, err := l.lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		other, err := l.lock(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("locked twice: %v", err)
		}
		got := false
		go func() {
			unlock, err := l.lock(context.Background(), "a")
			got = err == nil
			unlock()
		}()
		synctest.Wait()
		if got {
			t.Error("locked twice")
		}
		unlock()
		synctest.Wait()
		if !got || len(l.held) != 0 {
			t.Errorf("got %v; %d locks are left", got, len(l.held))
		}
	})
}

// A caller that has hung up is not told of another command where there is none.
func TestFreeLockIsHadThoughNobodyWaits(t *testing.T) {
	l := newLocks()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		unlock, err := l.lock(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		unlock()
	}
}

func TestStopCancelsWhatIsUnderWay(t *testing.T) {
	begun := make(chan struct{})
	f := &fakeAttacher{block: func(ctx context.Context) error { close(begun); <-ctx.Done(); return ctx.Err() }}
	dir, err := os.MkdirTemp("", "twill-cni")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	served := make(chan error)
	go func() { served <- Serve(ctx, l, f, slog.New(slog.DiscardHandler)) }()
	wantCode(t, call(t, socket, addRequest("1.0.0")), client.CodeTryAgainLater)
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// raw sends bytes and returns what comes back.
func raw(t testing.TB, socket string, request []byte) []byte {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, _ = conn.Write(request)
		_ = conn.(*net.UnixConn).CloseWrite()
	}()
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("%d bytes, then %v", len(answer), err)
	}
	return answer
}

// frame is the request as it goes over the wire.
func (r request) frame() []byte {
	text := strings.Join(r.environment(), "\x00") + "\x00\x00" + string(r.Config)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}

// unframe reads a reply off the wire.
func unframe(t testing.TB, b []byte) reply {
	t.Helper()
	if len(b) < 5 || int(binary.BigEndian.Uint32(b)) != len(b)-4 {
		t.Fatalf("not one frame: %q", b)
	}
	return parseReply(t, client.Reply{Status: b[4], Output: b[5:]})
}

func TestBadBytes(t *testing.T) {
	socket := serve(t, &fakeAttacher{})
	good := addRequest("1.0.0").frame()
	for name, request := range map[string][]byte{
		"nothing":      nil,
		"text":         []byte("GET / HTTP/1.1\r\n\r\n"),
		"cut off":      good[:len(good)-1],
		"no variables": {0, 0, 0, 0},
		"no end":       append([]byte{0, 0, 0, 14}, "CNI_COMMAND=DEL"...),
		"too large":    append([]byte{0, 1 << 7, 0, 0}, make([]byte, 3*client.MaxMessage)...),
		"deep":         append([]byte{0, 15, 0xff, 0xfe, 0}, bytes.Repeat([]byte("["), client.MaxMessage-3)...),
	} {
		answer := unframe(t, raw(t, socket, request))
		t.Log(name, answer.failure)
		if name == "deep" { // a request, and a bad one
			wantCode(t, answer, client.CodeInvalidEnvironment)
			continue
		}
		wantCode(t, answer, client.CodeDecode)
	}
	wantCode(t, call(t, socket, addRequest("1.0.0")), 0)
}

func FuzzSocket(f *testing.F) {
	f.Add(addRequest("1.0.0").frame())
	f.Add(as(addRequest("1.1.0", `"cni.dev/valid-attachments":null`), client.GC).frame())
	f.Add(as(addRequest("1.0.0", `"prevResult":{"interfaces":[{"name":"eth0","sandbox":"n"}],"ips":[{"interface":0}]}`), client.Check).frame())
	socket := serve(f, &fakeAttacher{})
	f.Fuzz(func(t *testing.T, request []byte) {
		unframe(t, raw(t, socket, request))
	})
}

func FuzzConfig(f *testing.F) {
	for _, more := range []string{`"dns":{}`, `"runtimeConfig":{"ips":["10.0.0.1"],"portMappings":[{"hostPort":1}]}`, `"args":{"cni":{"labels":[{"key":"a"}]}}`} {
		f.Add([]byte(configOf("1.0.0", more)))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig(text)
		var worded *client.Error
		if err != nil && !errors.As(err, &worded) {
			t.Errorf("%v has no code", err)
		}
		if err == nil && (c.name == "" || c.version == "") {
			t.Errorf("no name or version: %+v", c)
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b")
	f.Add("IP=10.0.0.1/8;MAC=02:00:00:00:00:00;;=;")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseArgs(text)
		if err == nil && strings.ContainsAny(a.namespace+a.pod, "/ \x00") {
			t.Errorf("%q gives %+v", text, a)
		}
	})
}
