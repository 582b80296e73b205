package kube

import (
	"os"
	"path/filepath"
	"testing"
)

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
