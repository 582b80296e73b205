package route_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

const closeWait = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"

func setting(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func conntrackPlan(connections string) *plan.Plan {
	p := plan.New()
	p.Sysctls.Set(plan.ConntrackMax, connections)
	p.Sysctls.Set(closeWait, "3600")
	return p
}

// TestConntrackMaxIsTheHosts: what a namespace has no say in is no fault, nor is
// it tried again and again; what is the namespace's own is set, and put back.
func TestConntrackMaxIsTheHosts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "originals")
	testnet.New(t).Do(func() {
		before, closeWaitBefore := setting(t, plan.ConntrackMax), setting(t, closeWait)
		connections, err := strconv.Atoi(before)
		if err != nil {
			t.Fatal(err)
		}
		k := openKeeping(t, file)
		p := conntrackPlan(strconv.Itoa(connections + 1))
		if writes, err := k.Apply(p); err != nil || writes != 1 {
			t.Errorf("%d writes, %v", writes, err)
		}
		if n := k.CheckSysctls(p); n != 0 {
			t.Errorf("%d settings differ", n)
		}
		if got := setting(t, plan.ConntrackMax); got != before {
			t.Errorf("the host's maximum was %s and is %s", before, got)
		}
		if got := setting(t, closeWait); got != "3600" {
			t.Errorf("the timeout is %s", got)
		}
		if _, err := route.RestoreSysctls(file); err != nil {
			t.Fatal(err)
		}
		if got := setting(t, closeWait); got != closeWaitBefore {
			t.Errorf("the timeout was %s and is %s", closeWaitBefore, got)
		}
	})
}

// TestConntrackMaxIsAMinimum: a host's maximum is raised and never lowered. The
// host is left alone: in a mount namespace a file is in the setting's place.
func TestConntrackMaxIsAMinimum(t *testing.T) {
	dir := t.TempDir()
	originals, maximum := filepath.Join(dir, "originals"), filepath.Join(dir, "maximum")
	write := func(value string) {
		t.Helper()
		if err := os.WriteFile(maximum, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("65536")
	testnet.New(t).Do(func() {
		withMount(t, maximum, "/proc/sys/"+plan.ConntrackMax)
		k := openKeeping(t, originals)
		p := conntrackPlan("131072")
		for _, step := range []struct{ set, want string }{{"65536", "131072"}, {"262144", "262144"}, {"1000", "131072"}} {
			write(step.set)
			k.CheckSysctls(p)
			if _, err := k.Apply(p); err != nil {
				t.Fatal(err)
			}
			if got := setting(t, plan.ConntrackMax); got != step.want {
				t.Errorf("it was %s and is %s, want %s", step.set, got, step.want)
			}
			if n := k.CheckSysctls(p); n != 0 {
				t.Errorf("it was %s: %d settings differ", step.set, n)
			}
		}
		if _, err := route.RestoreSysctls(originals); err != nil {
			t.Fatal(err)
		}
		if got := setting(t, plan.ConntrackMax); got != "65536" {
			t.Errorf("after all it is %s", got)
		}
		// Any other reason not to write it is a fault.
		if err := unix.Mount("", "/proc/sys/"+plan.ConntrackMax, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		k.CheckSysctls(p)
		if _, err := k.Apply(p); err == nil || !strings.Contains(err.Error(), "set sysctl "+plan.ConntrackMax+"=131072: read-only file system") {
			t.Errorf("of a file system that is read-only: %v", err)
		}
	})
}

// withMount puts a file in the place of another for the rest of the test, which
// keeps its thread: with its goroutine this and the mount end.
func withMount(t *testing.T, file, over string) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, over, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
}
