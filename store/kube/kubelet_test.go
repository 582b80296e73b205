package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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

func TestKubeletsServer(t *testing.T) {
	const good = `{"apiVersion":"v1","kind":"Config","current-context":"a",
		"contexts":[{"name":"a","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":"https://172.16.10.10:6443"}}]}`
	for content, want := range map[string]string{
		good:       "https://172.16.10.10:6443",
		"":         "",
		"{}":       "",
		"\x00\x01": "",
		`{"apiVersion":"v1","kind":"Config","current-context":"a","contexts":[{"name":"a","context":{"cluster":"c"}}]}`: "",
	} {
		path := filepath.Join(t.TempDir(), "kubelet.conf")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := kubeletsServer(path); got != want {
			t.Errorf("%s: %q, want %q", content, got, want)
		}
	}
	// A runtime makes a directory of what a volume names and is not there.
	if got := kubeletsServer(t.TempDir()); got != "" {
		t.Errorf("a directory: %q", got)
	}
}
