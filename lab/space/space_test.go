package space

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make namespaces")
	}
}

func newSpace(t *testing.T, hostname string) *Space {
	t.Helper()
	s, err := New(hostname)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestSpaceIsolates(t *testing.T) {
	needRoot(t)
	host, _ := os.Hostname()
	s := newSpace(t, "somewhere")

	var out strings.Builder
	cmd := exec.Command("hostname")
	cmd.Stdout = &out
	if err := s.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || strings.TrimSpace(out.String()) != "somewhere" {
		t.Errorf("hostname inside: %q, %v", out.String(), err)
	}
	err := s.Do(func() error {
		links, err := net.Interfaces()
		if err == nil && (len(links) == 0 || links[0].Name != "lo") {
			t.Errorf("devices inside: %v", links)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if now, _ := os.Hostname(); now != host {
		t.Errorf("the host's name became %s", now)
	}
}

func TestOverlayKeepsWritesInside(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "old"), []byte("outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSpace(t, "writer")
	err := s.Do(func() error {
		if err := Tmpfs("/run", "twill-space-test"); err != nil {
			return err
		}
		if err := Overlay(dir, "/run/scratch"); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "old"), []byte("inside"), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); !os.IsNotExist(err) {
		t.Errorf("what was written inside is seen outside: %v", err)
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "old")); string(text) != "outside" {
		t.Errorf("file outside became %q", text)
	}
}

func TestBindOutlivesHiding(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tool"), []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := newSpace(t, "binder")
	err := s.Do(func() error {
		h, err := Open(filepath.Join(dir, "tool"))
		if err != nil {
			return err
		}
		defer h.Close()
		if err := Tmpfs("/run", "twill-space-test"); err != nil {
			return err
		}
		if err := h.Bind("/run/bin/tool", true); err != nil {
			return err
		}
		if err := os.WriteFile("/run/bin/tool", []byte("y"), 0o755); err == nil {
			t.Error("a read-only file could be written")
		}
		_, err = os.ReadFile("/run/bin/tool")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestKillMarkedFindsOrphans(t *testing.T) {
	needRoot(t)
	const mark = "twill-space-test-orphans"
	s := newSpace(t, "parent")
	if err := s.Do(func() error { return Tmpfs("/run", mark+"/one") }); err != nil {
		t.Fatal(err)
	}
	// The shell ends and leaves an orphan without our environment.
	cmd := exec.Command("sh", "-c", "env -i setsid sleep 100 >/dev/null 2>&1 &")
	if err := s.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids, err := Marked(mark)
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the orphan was not found")
		}
	}
	if err := KillMarked(mark, 5*time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestCloseKillsWhatWasStarted(t *testing.T) {
	needRoot(t)
	s, err := New("short")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "100")
	if err := s.Start(cmd); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("after Close: %v", err)
	}
	if err := s.Do(func() error { return nil }); err == nil {
		t.Error("Do works on a closed Space")
	}
}

func TestHasMark(t *testing.T) {
	const line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - tmpfs twill-lab/a/node01 rw\n"
	for mark, want := range map[string]bool{"twill-lab/a": true, "twill-lab/a/node01": true, "twill-lab": true, "twill-lab/": false, "twill": false, "/mnt2": false} {
		if got := hasMark(line, mark); got != want {
			t.Errorf("hasMark(%q) = %t", mark, got)
		}
	}
}
