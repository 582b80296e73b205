package process

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

func TestRunning(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	link := func(to string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777}
	}
	files := fstest.MapFS{
		"proc/self/ns/net": link("net:[1]"),
		"proc/7/cmdline":   file("/usr/bin/kubelet\x00--config=/a\x00--config\x00/b\x00--kubeconfig=/c=d\x00"),
		"proc/7/ns/net":    link("net:[1]"),
		"proc/8/cmdline":   file("kubelet\x00--config=/other\x00"),
		"proc/8/ns/net":    link("net:[2]"),
		"proc/9/cmdline":   file("/bin/sh\x00kubelet\x00"),
		"proc/9/ns/net":    link("net:[1]"),
		"proc/10/cmdline":  file(""), // of the kernel
		"proc/11/comm":     file("kubelet\n"),
		"proc/meminfo":     file(""),
	}
	got := Running(files, "kubelet")
	if len(got) != 1 || got[0].PID != "7" {
		t.Fatalf("%v", got)
	}
	for _, c := range []struct {
		names []string
		want  string
	}{
		{[]string{"--config", "-c"}, "/b"}, {[]string{"--kubeconfig"}, "/c=d"}, {[]string{"-c"}, ""},
	} {
		if got := got[0].Flag(c.names...); got != c.want {
			t.Errorf("%v is %q, want %q", c.names, got, c.want)
		}
	}
	delete(files, "proc/self/ns/net")
	if got := Running(files, "kubelet"); len(got) != 2 {
		t.Errorf("without a namespace of its own: %v", got)
	}
	if got := Running(fstest.MapFS{}, "kubelet"); got != nil {
		t.Errorf("without /proc: %v", got)
	}
}

// TestSelf finds this process on the real machine.
func TestSelf(t *testing.T) {
	for _, p := range Running(os.DirFS("/"), filepath.Base(os.Args[0])) {
		if p.Args[0] == os.Args[0] {
			return
		}
	}
	t.Errorf("%s is not found", os.Args[0])
}
