package preflight

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/twill-net/twill/health"
)

const sysctlRoot = "/proc/sys"

// checkSysctls judges the settings that guides have people set by hand.
func checkSysctls(f *Facts) (string, []Finding) {
	var out []Finding
	if f.Sysctls[ipForward] == "0" {
		out = append(out, found(health.ForwardingOff, "net.ipv4.ip_forward is 0").with(ipForward, "1"))
	}
	for _, p := range f.Services {
		if p.Addr().Is6() && f.Sysctls[forwarding6] == "0" {
			out = append(out, found(health.ForwardingOff, "net.ipv6.conf.all.forwarding is 0").with(forwarding6, "1"))
			break
		}
	}
	// It is there with br_netfilter only.
	if f.Sysctls[bridgeRules] == "0" {
		out = append(out, found(health.BridgeNotFiltered, "net.bridge.bridge-nf-call-iptables is 0").with(bridgeRules, "1"))
	}
	// The kernel takes the larger one (ip-sysctl: strict is 1, loose 2).
	if path := reversePath(f.Underlay.Link); f.Underlay.Link != "" && max(f.Sysctls[path], f.Sysctls[reversePath("all")]) == "1" {
		out = append(out, found(health.ReversePathStrict, "rp_filter of %s is strict", f.Underlay.Link).with(path, "2"))
	}
	return fmt.Sprintf("ip_forward %s, rp_filter %s", f.Sysctls[ipForward], max(f.Sysctls[reversePath(f.Underlay.Link)], f.Sysctls[reversePath("all")])), out
}

const (
	ipForward   = "net/ipv4/ip_forward"
	forwarding6 = "net/ipv6/conf/all/forwarding"
	bridgeRules = "net/bridge/bridge-nf-call-iptables"
)

func reversePath(link string) string { return "net/ipv4/conf/" + link + "/rp_filter" }

// readSysctls reads what checkSysctls looks at; a setting that the kernel does
// not have is left out.
func readSysctls(link string) map[string]string {
	out := map[string]string{}
	for _, path := range []string{ipForward, forwarding6, bridgeRules, reversePath("all"), reversePath(link)} {
		if b, err := os.ReadFile(filepath.Join(sysctlRoot, path)); err == nil {
			out[path] = strings.TrimSpace(string(b))
		}
	}
	return out
}

// Fix sets the sysctls that findings name, in the calling thread's network
// namespace, until the next boot. It returns what it did.
func Fix(results []Result) (done []Setting, err error) {
	for _, f := range Findings(results) {
		if f.Setting == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(sysctlRoot, f.Setting.Path), []byte(f.Setting.Value), 0); err != nil {
			return done, fmt.Errorf("set sysctl %s=%s: %w", f.Setting.Path, f.Setting.Value, err)
		}
		done = append(done, *f.Setting)
	}
	return done, nil
}
