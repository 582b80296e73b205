package testnet_test

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/dataplane/testnet"
)

func TestNamespacesTalkOverAPair(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	testnet.Pair(t, a, b, "left", "right")
	for _, family := range []struct{ left, right, target string }{
		{"10.0.0.1/24", "10.0.0.2/24", "10.0.0.2:0"},
		{"fd00::1/64", "fd00::2/64", "[fd00::2]:0"},
	} {
		a.Address(t, "left", family.left)
		b.Address(t, "right", family.right)
		var l net.Listener
		b.Do(func() {
			var err error
			if l, err = net.Listen("tcp", family.target); err != nil {
				t.Fatal(err)
			}
		})
		defer l.Close()
		a.Do(func() {
			c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
}

func TestRoutesAndSysctls(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	testnet.Pair(t, a, b, "left", "right")
	a.Address(t, "left", "10.0.0.1/24")
	a.Route(t, "10.9.0.0/16", "10.0.0.2")
	out, err := a.Command("ip", "route", "get", "10.9.1.1").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "via 10.0.0.2") {
		t.Errorf("ip route get: %s, %v", out, err)
	}
	a.Sysctl(t, "ipv4/ip_forward", "1")
	for ns, want := range map[*testnet.NS]string{a: "1\n", b: "0\n"} {
		ns.Do(func() {
			if got, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || string(got) != want {
				t.Errorf("ip_forward is %q, %v; want %q", got, err, want)
			}
		})
	}
}

func TestDoComesBack(t *testing.T) {
	home := namespace(t)
	a, b := testnet.New(t), testnet.New(t)
	if namespace(t) != home {
		t.Fatal("New left the thread in the new namespace")
	}
	a.Do(func() {
		inA := namespace(t)
		b.Do(func() {
			if in := namespace(t); in == inA || in == home {
				t.Error("the nested call is not in its namespace")
			}
		})
		if namespace(t) != inA {
			t.Error("the nested call did not come back")
		}
	})
	t.Run("after a test ended inside", func(t *testing.T) { a.Do(t.SkipNow) })
	if namespace(t) != home {
		t.Error("the thread did not come home")
	}
}

func namespace(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}
