package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/twill-net/twill/api"
	labetcd "github.com/twill-net/twill/lab/etcd"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Server {
		return newServer(t, startEmbedded, socket(t))
	})
}

// oldest is Debian 12's etcd, of the oldest version that we promise to work
// with.
const oldest = "/usr/bin/etcd"

func TestConformanceOldest(t *testing.T) {
	if _, err := os.Stat(oldest); err != nil {
		t.Skip("no etcd executable on this machine: ", err)
	}
	version, err := exec.Command(oldest, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(strings.Split(string(version), "\n")[0])
	storetest.Run(t, func(t *testing.T) storetest.Server {
		return newServer(t, startExecutable, "http://"+freeAddress(t, ownHost()))
	})
}

// server is a storetest.Server with a directory and a socket of its own.
type server struct {
	run      func(t *testing.T, dir, endpoint string) (stop func())
	dir      string
	endpoint string
	stop     func() // nil: it is stopped
}

func socket(t *testing.T) string { return "unix://" + filepath.Join(t.TempDir(), "s") }

func newServer(t *testing.T, run func(t *testing.T, dir, endpoint string) (stop func()), endpoint string) *server {
	s := &server{run: run, dir: filepath.Join(t.TempDir(), "etcd"), endpoint: endpoint}
	t.Cleanup(func() {
		if s.stop != nil {
			s.stop()
		}
	})
	s.Start(t)
	return s
}

// freeAddress is an address that nothing listens on.
func freeAddress(t *testing.T, host string) string {
	listener, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// ownHost is a loopback address of the test's own: on 127.0.0.1 the port of a
// server that is stopped for a while may become a client's.
func ownHost() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.N(250), rand.N(250), 1+rand.N(250))
}

func startEmbedded(t *testing.T, dir, endpoint string) func() {
	s, err := labetcd.Start(t.Context(), labetcd.Config{Dir: dir, ListenURLs: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// startExecutable listens on loopback: 3.4 knows no absolute path of a socket.
func startExecutable(t *testing.T, dir, endpoint string) func() {
	cmd := exec.Command(oldest, "--name=test", "--data-dir="+dir,
		"--listen-client-urls="+endpoint, "--advertise-client-urls="+endpoint,
		"--listen-peer-urls=http://127.0.0.1:0", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=test=http://127.0.0.1:2380",
		"--heartbeat-interval=10", "--election-timeout=100",
		"--logger=zap", "--log-level=error", "--log-outputs=/dev/null")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

func (s *server) Open(t *testing.T) store.Store {
	return open(t, Config{Endpoints: []string{s.endpoint}})
}

func open(t *testing.T, c Config) store.Store {
	t.Helper()
	opened, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return opened
}

func (s *server) Stop(*testing.T) { s.stop(); s.stop = nil }

func (s *server) Start(t *testing.T) {
	s.stop = s.run(t, s.dir, s.endpoint)
	s.raw(t, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Get(ctx, "k")
		return err
	})
}

// raw talks to etcd beside the store.
func (s *server) raw(t *testing.T, do func(context.Context, *clientv3.Client) error) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := do(ctx, c); err != nil {
		t.Fatal(err)
	}
}

func (s *server) Compact(t *testing.T) {
	s.raw(t, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, "k")
		if err == nil {
			_, err = c.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical())
		}
		return err
	})
}

func (s *server) Corrupt(t *testing.T, kind *api.Kind, key api.Key) {
	s.write(t, keyPath(kind, key), "{")
}

func (s *server) write(t *testing.T, path, value string) {
	s.raw(t, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, path, value)
		return err
	})
}

// Backup copies the volume, as a snapshot of it would.
func (s *server) Backup(t *testing.T) {
	s.Stop(t)
	if err := os.CopyFS(s.dir+"-backup", os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
}

func (s *server) PutBack(t *testing.T) {
	s.Stop(t)
	if err := errors.Join(os.RemoveAll(s.dir), os.Rename(s.dir+"-backup", s.dir)); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
}

func (s *server) Wipe(t *testing.T) {
	s.Stop(t)
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
}

func TestPaths(t *testing.T) {
	for want, c := range map[string]struct {
		kind *api.Kind
		key  api.Key
	}{
		"/twill/v1/core/services/default/web":                         {api.ServiceKind, api.Key{Namespace: "default", Name: "web"}},
		"/twill/v1/core/nodes/node01":                                 {api.NodeKind, api.Key{Name: "node01"}},
		"/twill/v1/networking.k8s.io/networkpolicies/policy-demo/np":  {api.NetworkPolicyKind, api.Key{Namespace: "policy-demo", Name: "np"}},
		"/twill/v1/projectcalico.org/ippools/default-ipv4":            {api.IPPoolKind, api.Key{Name: "default-ipv4"}},
		"/twill/v1/projectcalico.org/workloadendpoints/default/nginx": {api.WorkloadEndpointKind, api.Key{Namespace: "default", Name: "nginx"}},
	} {
		if got := keyPath(c.kind, c.key); got != want {
			t.Errorf("path %s, want %s", got, want)
		}
		if key, err := parsePath(c.kind, want); key != c.key || err != nil {
			t.Errorf("%s: parsed %v, %v", want, key, err)
		}
	}
	for _, path := range []string{"", "/twill/v1/core/services/", "/twill/v1/core/services/a", "/twill/v1/core/services/a/", "/twill/v1/core/services//b", "/twill/v1/core/services/a/b/c", "/twill/v1/core/nodes/a/b"} {
		if key, err := parsePath(api.ServiceKind, path); err == nil {
			t.Errorf("%s: parsed %v", path, key)
		}
	}
}

// TestRubbish writes what a stray hand might, and counts how it is reported.
func TestRubbish(t *testing.T) {
	s := newServer(t, startEmbedded, socket(t))
	log := newRecorder()
	opened := open(t, Config{Endpoints: []string{s.endpoint}, Logger: log.logger()})
	prefix := kindPath(api.ServiceKind)
	for path, value := range map[string]string{
		prefix + "a/empty":       "",
		prefix + "a/null":        "null",
		prefix + "a/list":        "[]",
		prefix + "a/text":        "rubbish",
		prefix + "a/type":        `{"metadata":{"namespace":"a","name":"type"},"spec":{"ports":7}}`,
		prefix + "a/kind":        `{"apiVersion":"v1","kind":"Node","metadata":{"namespace":"a","name":"kind"}}`,
		prefix + "a/name":        `{"metadata":{"namespace":"a","name":"other"}}`,
		prefix + "a/namespace":   `{"metadata":{"namespace":"b","name":"namespace"}}`,
		prefix + "no-namespace":  `{"metadata":{"name":"no-namespace"}}`,
		prefix + "a/b/too-deep":  `{"metadata":{"namespace":"a","name":"b"}}`,
		prefix + "a/good":        `{"metadata":{"namespace":"a","name":"good"},"spec":{"unknown":1}}`,
		"/twill/v1/core/service": "another kind",
	} {
		s.write(t, path, value)
	}
	for range 3 {
		list, err := opened.List(t.Context(), api.ServiceKind, "")
		if err != nil || len(list.Items) != 1 || list.Items[0].GetName() != "good" || len(list.Unreadable) != 10 {
			t.Fatalf("listed %v, %v", list, err)
		}
	}
	if n := len(log.lines()); n != 10 {
		t.Errorf("%d lines were logged for 10 bad values:\n%s", n, strings.Join(log.lines(), "\n"))
	}
	inspector := opened.(store.Inspector)
	if n := len(inspector.Unreadable()); n != 10 {
		t.Errorf("%d reported", n)
	}
	s.write(t, prefix+"a/text", "more rubbish")
	if _, err := opened.List(t.Context(), api.ServiceKind, "a"); err != nil || len(log.lines()) != 11 {
		t.Errorf("a new revision of rubbish: %d lines, %v", len(log.lines()), err)
	}
	s.raw(t, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Delete(ctx, prefix, clientv3.WithPrefix())
		return err
	})
	if _, err := opened.List(t.Context(), api.ServiceKind, ""); err != nil || len(inspector.Unreadable()) != 0 {
		t.Errorf("after all was deleted: %v, %v", inspector.Unreadable(), err)
	}
}

func TestUnixSocketAndDeadEndpoint(t *testing.T) {
	dir := t.TempDir()
	endpoint := "unix://" + filepath.Join(dir, "s")
	lab, err := labetcd.Start(t.Context(), labetcd.Config{Dir: dir, ListenURLs: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	s := open(t, Config{Endpoints: []string{"http://" + freeAddress(t, ownHost()), endpoint}})
	for i := range 10 {
		node := api.NodeKind.New()
		node.SetName(fmt.Sprintf("node%02d", i))
		if _, err := s.Create(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPauseEndsWhenEtcdIsBack waits much longer for nothing than for etcd.
func TestPauseEndsWhenEtcdIsBack(t *testing.T) {
	server := newServer(t, startEmbedded, socket(t))
	s := server.Open(t)
	if _, err := s.List(t.Context(), api.NodeKind, ""); err != nil {
		t.Fatal(err)
	}
	server.Stop(t)
	if _, err := s.List(t.Context(), api.NodeKind, ""); !isUnavailable(err) {
		t.Fatalf("a list while etcd is stopped: %v", err)
	}
	began, paused := time.Now(), make(chan bool)
	go func() { paused <- store.Pause(t.Context(), s, time.Minute) }()
	server.Start(t)
	if !<-paused || time.Since(began) > 30*time.Second {
		t.Errorf("paused for %s", time.Since(began))
	}
	// While nothing changes it lasts as long as it was told, or until ctx ends.
	began = time.Now()
	if !store.Pause(t.Context(), s, 50*time.Millisecond) || time.Since(began) < 50*time.Millisecond {
		t.Errorf("paused for %s", time.Since(began))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if store.Pause(ctx, s, time.Minute) {
		t.Error("a pause that was broken off says that it was not")
	}
}

// TestSilentServer is a server that takes connections and never says a word.
func TestSilentServer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"plain":    {},
		"password": {Username: "twill", PasswordFile: password},
	} {
		t.Run(name, func(t *testing.T) {
			c.Endpoints = []string{listener.Addr().String()}
			s := open(t, c)
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := s.List(ctx, api.NodeKind, "")
			if err == nil || !isUnavailable(err) || time.Since(start) > 2*time.Second {
				t.Errorf("after %s: %v", time.Since(start), err)
			}
			start = time.Now()
			events, ended := s.Watch(t.Context(), api.NodeKind, "1.1.1.0")
			for range events {
			}
			if err := ended(); !isUnavailable(err) || time.Since(start) > 2*callTimeout {
				t.Errorf("after %s: %v", time.Since(start), err)
			}
		})
	}
}

// TestAddressesOfServers: those that connections were made to, by TCP.
func TestAddressesOfServers(t *testing.T) {
	host := ownHost()
	s := newServer(t, startEmbedded, "http://"+freeAddress(t, host))
	for endpoint, want := range map[string]string{s.endpoint: "[" + host + "]", "http://" + freeAddress(t, ownHost()): "[]"} {
		opened := open(t, Config{Endpoints: []string{endpoint}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := opened.List(ctx, api.NodeKind, "")
		cancel()
		if got := fmt.Sprint(opened.(store.Remote).Addresses()); got != want {
			t.Errorf("%s: %s, want %s (%v)", endpoint, got, want, err)
		}
	}
}
