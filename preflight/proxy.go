package preflight

import (
	"fmt"
	"slices"

	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/health"
)

// checkServices looks for kube-proxy by what it writes, in whichever way.
func checkServices(f *Facts) (string, []Finding) {
	where := proxyRules(f.Rules)
	if where == "" && slices.ContainsFunc(f.Links, func(l Link) bool { return l.Name == "kube-ipvs0" }) {
		where = "device kube-ipvs0"
	}
	if where == "" {
		return "no kube-proxy", nil
	}
	return "kube-proxy", []Finding{found(health.ServiceProxyRuns, "there is the %s", where)}
}

// ProxyRules says where in the network namespace of the calling thread a
// kube-proxy has rules, whether it runs or not; empty: it has none.
func ProxyRules() (where string, err error) {
	var f Facts
	err = f.readRules(nft.ReadForeignChains)
	return proxyRules(f.Rules), err
}

func proxyRules(rules []nft.Foreign) (where string) {
	for _, c := range rules {
		switch {
		case c.Table == "kube-proxy":
			return "nftables table " + c.Table
		case c.Name == "KUBE-SERVICES" || c.Name == "KUBE-NODEPORTS":
			return fmt.Sprintf("chain %s of table %s", c.Name, c.Table)
		}
	}
	return ""
}
