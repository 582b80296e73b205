package preflight

import (
	"fmt"

	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
)

// minIPv6 is the least that each link of IPv6 has to carry (RFC 8200 §5).
const minIPv6 = 1280

// checkMTU judges what is left for pods.
func checkMTU(f *Facts) (string, []Finding) {
	if f.Underlay.Link == "" {
		return "not known", nil
	}
	pods := fabric.PodMTU(fabric.Self{Name: f.Name, Underlay: f.Underlay}, fabric.ConfigFrom(nil), nil)
	seen := fmt.Sprintf("%s has %d, pods get %d", f.Underlay.Link, f.Underlay.MTU, pods)
	if pods < minIPv6 {
		return seen, []Finding{found(health.MTUSmall, "%s has an MTU of %d, which leaves %d for pods", f.Underlay.Link, f.Underlay.MTU, pods)}
	}
	return seen, nil
}
