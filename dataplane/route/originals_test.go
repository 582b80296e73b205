package route_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// openKeeping opens the kernel of the thread's namespace; originals go into the file.
func openKeeping(t *testing.T, file string) *route.Kernel {
	t.Helper()
	k, err := route.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	if err := k.KeepOriginals(file); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestSysctlsGoBackToWhatTheyWere: also when an agent that came later saw only
// the values that an earlier one had set.
func TestSysctlsGoBackToWhatTheyWere(t *testing.T) {
	const forward, icmp = "net/ipv4/ip_forward", "net/ipv4/icmp_echo_ignore_all"
	file := filepath.Join(t.TempDir(), "originals")
	host := testnet.New(t)
	host.Do(func() {
		value := func(path string) string {
			b, err := os.ReadFile("/proc/sys/" + path)
			if err != nil {
				t.Fatal(err)
			}
			return string(b[:1])
		}
		for _, want := range []string{"1", "0"} {
			k := openKeeping(t, file)
			p := plan.New()
			p.Sysctls.Set(forward, "1")
			p.Sysctls.Set(icmp, want)
			if _, err := k.Apply(p); err != nil {
				t.Fatal(err)
			}
			if value(forward) != "1" || value(icmp) != want {
				t.Fatalf("forward %s, icmp %s", value(forward), value(icmp))
			}
		}
		restored, err := route.RestoreSysctls(file)
		if err != nil {
			t.Fatal(err)
		}
		if value(forward) != "0" || value(icmp) != "0" || len(restored) != 1 {
			t.Errorf("forward %s, icmp %s; restored %q", value(forward), value(icmp), restored)
		}
		if _, err := os.Stat(file); err == nil {
			t.Error("the file is still there")
		}
	})
}

// TestForwardingGoesBackWithAllThatFollowsIt: the kernel changes more than the one
// setting when it is told to forward.
func TestForwardingGoesBackWithAllThatFollowsIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "originals")
	host, peer := testnet.New(t), testnet.New(t)
	testnet.Pair(t, host, peer, "eth0", "eth0")
	testnet.Pair(t, host, peer, "eth1", "eth1")
	host.Sysctl(t, "ipv4/ip_forward", "0")
	host.Sysctl(t, "ipv6/conf/all/forwarding", "0")
	host.Sysctl(t, "ipv4/conf/all/accept_redirects", "0")
	host.Sysctl(t, "ipv4/conf/eth0/forwarding", "1")
	host.Sysctl(t, "ipv6/conf/eth1/forwarding", "1")
	state := func() string {
		out, err := host.Command("sh", "-c", "cd /proc/sys/net && grep -r . ipv4/ip_forward ipv4/conf ipv6/conf 2>/dev/null | sort").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	before := state()
	host.Do(func() {
		k, err := route.Open(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		if err := k.KeepOriginals(file); err != nil {
			t.Fatal(err)
		}
		p := plan.New()
		p.Sysctls.Set("net/ipv4/ip_forward", "1")
		p.Sysctls.Set("net/ipv6/conf/all/forwarding", "1")
		if _, err := k.Apply(p); err != nil {
			t.Fatal(err)
		}
	})
	if state() == before {
		t.Fatal("nothing was changed")
	}
	host.Do(func() {
		if _, err := route.RestoreSysctls(file); err != nil {
			t.Fatal(err)
		}
	})
	if diff := cmp.Diff(before, state()); diff != "" {
		t.Error(diff)
	}
}
