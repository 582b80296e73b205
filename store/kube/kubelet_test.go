package kube

import (
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// TestContext: a kubeconfig may be of several clusters.
func TestContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(`{"clusters":[{"name":"a","cluster":{"server":"http://192.0.2.1"}},{"name":"b","cluster":{"server":"http://192.0.2.2"}}],
		"contexts":[{"name":"a","context":{"cluster":"a"}},{"name":"b","context":{"cluster":"b"}}],"current-context":"a"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for context, want := range map[string]string{"": "http://192.0.2.1", "a": "http://192.0.2.1", "b": "http://192.0.2.2"} {
		if c, err := RESTConfig(Config{Kubeconfig: path, Context: context}); err != nil || c.Host != want {
			t.Errorf("context %q: %v (%v), want %s", context, c, err, want)
		}
	}
	if _, err := RESTConfig(Config{Kubeconfig: path, Context: "c"}); err == nil || !strings.Contains(err.Error(), `context "c" does not exist`) {
		t.Errorf("no such context: %v", err)
	}
}

const kubeletConf = `{"apiVersion":"v1","kind":"Config","current-context":"a",
	"contexts":[{"name":"a","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":"https://172.16.10.10:6443"}}]}`

// TestKubeletsServer: the API server that the kubelet uses is found wherever the
// kubelet has its kubeconfig, and what was tried is told.
func TestKubeletsServer(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	network := func(id string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte("net:[" + id + "]"), Mode: fs.ModeSymlink | 0o777}
	}
	const five, first = "proc/5/root", "proc/1/root"
	const kubelet = "/usr/bin/kubelet\x00--kubeconfig=/odd/place\x00"
	for _, c := range []struct {
		name  string
		files fstest.MapFS
		found string // where; empty: nowhere
		tried string
	}{
		{"as the kubelet was started", fstest.MapFS{"proc/self/ns/net": network("1"), "proc/5/ns/net": network("1"),
			"proc/5/cmdline": file(kubelet), five + "/odd/place": file(kubeletConf)}, "/odd/place", ""},
		{"the kubelet of another node", fstest.MapFS{"proc/self/ns/net": network("1"), "proc/5/ns/net": network("2"),
			"proc/5/cmdline": file(kubelet), five + "/odd/place": file(kubeletConf)}, "", "no process kubelet"},
		{"k3s", fstest.MapFS{"proc/self/ns/net": network("1"), "proc/1/ns/net": network("1"),
			first + "/var/lib/rancher/k3s/agent/kubelet.kubeconfig": file(kubeletConf)}, "/var/lib/rancher/k3s/agent/kubelet.kubeconfig", ""},
		{"a lab on a machine with a kubelet", fstest.MapFS{"proc/self/ns/net": network("1"), "proc/1/ns/net": network("2"),
			first + "/etc/kubernetes/kubelet.conf": file(kubeletConf)}, "", "/etc/kubernetes/kubelet.conf: file does not exist"},
		{"mounted", fstest.MapFS{"etc/kubernetes/kubelet.conf": file(kubeletConf)}, "/etc/kubernetes/kubelet.conf", ""},
		{"a directory", fstest.MapFS{"etc/kubernetes/kubelet.conf/x": file("")}, "", "/etc/kubernetes/kubelet.conf: "},
		{"empty", fstest.MapFS{"etc/kubernetes/kubelet.conf": file("")}, "", "/etc/kubernetes/kubelet.conf: its current context has no server"},
		{"rubbish", fstest.MapFS{"etc/kubernetes/kubelet.conf": file("\x00\x01")}, "", "/etc/kubernetes/kubelet.conf: not a kubeconfig"},
		{"no cluster", fstest.MapFS{"etc/kubernetes/kubelet.conf": file(`{"apiVersion":"v1","kind":"Config","current-context":"a","contexts":[{"name":"a","context":{"cluster":"c"}}]}`)},
			"", "its current context has no server"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log strings.Builder
			s := findServers("https://10.1.0.1:443", c.files, slog.New(slog.NewTextHandler(&log, nil)))
			if last := s.all[len(s.all)-1]; last.url != "https://10.1.0.1:443" {
				t.Errorf("what the pod was given is not the last: %v", s.all)
			}
			if c.found == "" {
				if len(s.all) != 1 || !strings.Contains(log.String(), c.tried) || !strings.Contains(log.String(), "TWILL_API_SERVER") {
					t.Errorf("%v\n%s", s.all, log.String())
				}
				return
			}
			if s.all[0] != (location{"https://172.16.10.10:6443", "the kubelet's kubeconfig " + c.found}) || !strings.Contains(log.String(), c.found) {
				t.Errorf("%v\n%s", s.all, log.String())
			}
		})
	}
}

// TestServersInTurn: where one address does not answer the next is tried, and the log
// tells what came of each, once.
func TestServersInTurn(t *testing.T) {
	var got []string
	answer := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = append(got, r.URL.Path) }))
	defer answer.Close()
	refuses, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refuses.Close()
	var log strings.Builder
	s := &servers{log: slog.New(slog.NewTextHandler(&log, nil)), silent: map[int]bool{},
		all: []location{{"http://" + refuses.Addr().String() + "/prefix", "the kubelet"}, {answer.URL, "the pod"}}}
	client := &http.Client{Transport: s.wrap(http.DefaultTransport)}
	ask := func() error {
		resp, err := client.Get(s.all[0].url + "/api/v1")
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := ask(); err == nil {
		t.Error("the first answers")
	}
	for range 2 {
		if err := ask(); err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(got, []string{"/api/v1", "/api/v1"}) {
		t.Errorf("asked for %v", got)
	}
	answer.Close()
	for range 4 {
		if err := ask(); err == nil {
			t.Error("nobody answers")
		}
	}
	var said []string
	for line := range strings.Lines(log.String()) {
		_, text, _ := strings.Cut(line, "msg=")
		text, _, _ = strings.Cut(text, " address")
		said = append(said, text)
	}
	want := []string{`"the API server does not answer"`, `"the API server answers"`, `"the API server does not answer"`, `"the API server does not answer"`}
	if !slices.Equal(said, want) {
		t.Errorf("said\n%s", log.String())
	}
}
