package preflight

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
)

// checkAddress judges how the node is joined with the others.
func checkAddress(f *Facts) (string, []Finding) {
	if f.NoUnderlay != "" {
		return "none", []Finding{found(health.NodeAddressMissing, "%s", f.NoUnderlay)}
	}
	return fmt.Sprintf("%s on %s", join(f.Underlay.Prefixes), f.Underlay.Link), nil
}

// checkRanges judges the ranges of pods and services against each other and
// against what this host reaches.
func checkRanges(f *Facts) (string, []Finding) {
	seen := fmt.Sprintf("pods %s, services %s", join(f.PodCIDRs), join(f.Services))
	var out []Finding
	for _, pods := range f.PodCIDRs {
		for _, services := range f.Services {
			if pods.Overlaps(services) {
				out = append(out, found(health.RangesOverlap, "pods %s and services %s overlap", pods, services))
			}
		}
	}
	for _, of := range []struct {
		what   string
		ranges []netip.Prefix
	}{{"pods", f.PodCIDRs}, {"services", f.Services}} {
		for _, r := range of.ranges {
			out = append(out, f.taken(of.what, r)...)
		}
	}
	return seen, out
}

// taken says what of this host lies in a range. An address' own network is told
// once, as the address.
func (f *Facts) taken(what string, r netip.Prefix) (out []Finding) {
	networks := map[netip.Prefix]bool{}
	for _, a := range f.Addresses {
		if ofTwill(a.Link) {
			continue
		}
		networks[a.Prefix.Masked()] = true
		networks[netip.PrefixFrom(a.Prefix.Addr(), a.Prefix.Addr().BitLen())] = true
		if r.Overlaps(a.Prefix.Masked()) {
			out = append(out, found(health.RangesOverlap, "%s %s overlaps the address %s of %s", what, r, a.Prefix, a.Link))
		}
	}
	for _, route := range f.Routes {
		if !route.Ours && !ofTwill(route.Link) && !networks[route.To] && r.Overlaps(route.To) {
			out = append(out, found(health.RangesOverlap, "%s %s overlaps the route to %s by %s", what, r, route.To, route.Link))
		}
	}
	return out
}

// ofTwill says whether a device is one of an agent that runs already.
func ofTwill(link string) bool {
	return strings.HasPrefix(link, plan.VethPrefix) || link == plan.VXLANLink
}

func join[T fmt.Stringer](all []T) string {
	if len(all) == 0 {
		return "none"
	}
	words := make([]string, len(all))
	for i, one := range all {
		words[i] = one.String()
	}
	return strings.Join(words, ", ")
}
