package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	if err := json.NewEncoder(conn).Encode(addRequest("1.0.0")); err != nil {
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

func TestBadBytes(t *testing.T) {
	socket := serve(t, &fakeAttacher{})
	for name, request := range map[string][]byte{
		"nothing":   nil,
		"text":      []byte("GET / HTTP/1.1\r\n\r\n"),
		"cut off":   []byte(`{"command":"ADD"`),
		"too large": []byte(`{"command":"` + strings.Repeat("x", 3*client.MaxMessage) + `"}`),
		"deep":      bytes.Repeat([]byte("["), client.MaxMessage-1),
	} {
		var reply client.Reply
		if err := json.Unmarshal(raw(t, socket, request), &reply); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		t.Log(name, reply.Error)
		wantCode(t, reply, client.CodeDecode)
	}
	wantCode(t, call(t, socket, addRequest("1.0.0")), 0)
}

func FuzzSocket(f *testing.F) {
	good, err := json.Marshal(addRequest("1.0.0"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"command":"GC","config":{"cniVersion":"1.1.0","name":"x","cni.dev/valid-attachments":null}}`))
	f.Add([]byte(`{"command":"CHECK","containerID":"a","netns":"n","ifName":"eth0","config":{"cniVersion":"1.0.0","name":"x","prevResult":{"interfaces":[{"name":"eth0","sandbox":"n"}],"ips":[{"interface":0}]}}}`))
	socket := serve(f, &fakeAttacher{})
	f.Fuzz(func(t *testing.T, request []byte) {
		var reply client.Reply
		if err := json.Unmarshal(raw(t, socket, request), &reply); err != nil {
			t.Error(err)
		}
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
