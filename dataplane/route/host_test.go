package route_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/dataplane/testnet"
)

// TestReserved: what a host needs for itself is read from its devices and routes;
// what is Twill's, down or link-local is not in it.
func TestReserved(t *testing.T) {
	ns := testnet.New(t)
	testnet.Pair(t, ns, testnet.New(t), "eth0", "eth0")
	testnet.Pair(t, ns, testnet.New(t), "tw-a", "eth0")
	for _, command := range []string{
		"ip address add 192.0.2.1/24 dev eth0",
		"ip address add 192.0.2.100/32 dev eth0",
		"ip address add 2001:db8::1/64 dev eth0 nodad",
		"ip route add default via 192.0.2.254",
		"ip route add default via 203.0.113.9 dev eth0 onlink metric 500",
		"ip -6 route add default via fe80::9 dev eth0",
		"ip route add 198.51.100.0/24 via 192.0.2.253",
		"ip link add cni0 type bridge",
		"ip address add 10.244.1.1/24 dev cni0",
		"ip link set cni0 up",
		"ip link add br1 type bridge",
		"ip address add 10.99.0.1/24 dev br1", // down
		"ip address add 10.98.0.1/24 dev tw-a",
		"ip address add 203.0.113.77/32 dev lo",
	} {
		if out, err := ns.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s", command, out)
		}
	}
	var got []string
	ns.Do(func() {
		host, err := route.ReadHost()
		if err != nil {
			t.Error(err)
		}
		for _, r := range host.Reserved() {
			got = append(got, fmt.Sprintf("%s %s local=%t", r.Prefix, r.What, r.Local))
		}
	})
	want := `10.99.0.1/32 an address of br1 local=true
10.244.1.0/24 the network of cni0 local=false
10.244.1.1/32 an address of cni0 local=true
192.0.2.0/24 the network of eth0 local=false
192.0.2.1/32 an address of eth0 local=true
192.0.2.100/32 an address of eth0 local=true
192.0.2.254/32 the default gateway local=false
203.0.113.9/32 the default gateway local=false
203.0.113.77/32 an address of lo local=true
2001:db8::/64 the network of eth0 local=false
2001:db8::1/128 an address of eth0 local=true`
	if diff := cmp.Diff(want, strings.Join(got, "\n")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
