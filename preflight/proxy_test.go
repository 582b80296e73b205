package preflight

import (
	"testing"

	"github.com/twill-net/twill/dataplane/testnet"
)

// TestProxyRules finds them in each way in which kube-proxy writes them, until the
// last is gone.
func TestProxyRules(t *testing.T) {
	needs(t)
	h := &host{t: t, ns: testnet.New(t)}
	check := func(what, want string) {
		t.Helper()
		h.ns.Do(func() {
			if where, err := ProxyRules(); err != nil || where != want {
				t.Errorf("%s: %q, %v; want %q", what, where, err, want)
			}
		})
	}
	check("a new namespace", "")
	// The kubelet's own, Twill's, and a user's.
	h.program("iptables-legacy", "-N", "KUBE-FIREWALL")
	h.program("iptables-nft", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
	h.nft("add table inet twill; add chain inet twill services; add table ip proxies; add chain ip proxies kube-proxy")
	check("others' rules", "")
	for _, iptables := range []string{"iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft"} {
		for _, chain := range []string{"KUBE-SERVICES", "KUBE-NODEPORTS"} {
			h.program(iptables, "-t", "nat", "-N", chain)
			check(iptables, "chain "+chain+" of table nat")
			h.program(iptables, "-t", "nat", "-X", chain)
			check(iptables+" -X", "")
		}
	}
	for _, family := range []string{"ip", "ip6"} {
		h.nft("add table " + family + " kube-proxy; add chain " + family + " kube-proxy services")
		check("nftables "+family, "nftables table kube-proxy")
		h.nft("delete table " + family + " kube-proxy")
		check("nftables "+family+", deleted", "")
	}
}
