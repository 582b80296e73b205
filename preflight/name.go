package preflight

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/twill-net/twill/health"
)

// checkName judges the name by which the API server and other nodes know this
// one.
func checkName(f *Facts) (string, []Finding) {
	if f.Name == "localhost" || strings.HasPrefix(f.Name, "localhost.") {
		return f.Name, []Finding{found(health.NameInvalid, "the name is %s, as that of every other host", f.Name)}
	}
	if problems := validation.IsDNS1123Subdomain(f.Name); len(problems) > 0 {
		return f.Name, []Finding{found(health.NameInvalid, "%q: %s", f.Name, withoutExample(problems[0]))}
	}
	if len(f.Resolved) == 0 {
		return f.Name, []Finding{found(health.NameUnresolved, "%s has no address", f.Name)}
	}
	own := func(a netip.Addr) bool {
		return slices.ContainsFunc(f.Underlay.Prefixes, func(p netip.Prefix) bool { return p.Addr() == a })
	}
	seen := f.Name + " is " + join(f.Resolved)
	if len(f.Underlay.Prefixes) > 0 && !slices.ContainsFunc(f.Resolved, own) {
		return seen, []Finding{found(health.NameUnresolved, "%s leads to %s, the node's address is %s", f.Name, join(f.Resolved), f.Underlay.Prefixes[0].Addr())}
	}
	return seen, nil
}

func withoutExample(problem string) string {
	problem, _, _ = strings.Cut(problem, " (e.g.")
	return problem
}
