package kube

import (
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// TestDeadConnection: where a connection leads nowhere any more, another is made
// soon.
func TestDeadConnection(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("a request in %s", r.Proto)
		}
		fmt.Fprint(w, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n","resourceVersion":"1"}}`)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	way := newWay(t, server.Listener.Addr().String())
	s, err := Open(t.Context(), Config{Kubeconfig: kubeconfigOf(t, server, "https://"+way.Addr().String())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	get := func() error {
		_, err := s.Get(t.Context(), api.NodeKind, api.Key{Name: "n"})
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.(store.Remote).Addresses()); got != "[127.0.0.1]" {
		t.Errorf("the server's addresses are %s", got)
	}
	way.cut()
	began := time.Now()
	for err := get(); err != nil; err = get() {
		if time.Since(began) > 35*time.Second {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
	}
	t.Logf("the server was reached again after %s", time.Since(began).Round(100*time.Millisecond))
}

// way leads connections to a server.
type way struct {
	net.Listener
	conns chan [2]net.Conn
}

func newWay(t *testing.T, to string) *way {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &way{l, make(chan [2]net.Conn, 10)}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { from.Close() })
			on, err := net.Dial("tcp", to)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { on.Close() })
			w.conns <- [2]net.Conn{from, on}
			go func() { _, _ = io.Copy(on, from) }()
			go func() { _, _ = io.Copy(from, on) }()
		}
	}()
	return w
}

// cut takes the connection that there is from its server, and tells nobody.
func (w *way) cut() {
	c := <-w.conns
	_ = c[1].Close()
}

// kubeconfigOf trusts a server at a URL.
func kubeconfigOf(t *testing.T, server *httptest.Server, url string) string {
	t.Helper()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "a",
		"contexts": []any{map[string]any{"name": "a", "context": map[string]any{"cluster": "c"}}},
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": url, "certificate-authority-data": ca}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), strings.ReplaceAll(t.Name(), "/", "_"))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
