package testlab

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/twill-net/twill/lab"
)

// State lists what a node's kernel has of ours, and of what others may change of
// it, in an order that does not depend on when it was made. It needs the programs
// ip, bridge and nft.
func (l *Lab) State(ctx context.Context, node string) ([]string, error) {
	out, err := l.At(ctx, lab.Node(node), "sh", "-c", `
		for family in -4 -6; do
			ip $family route show table all proto 84
			ip $family neigh show nud permanent
		done
		bridge fdb show dev twill-vxlan
		ip -d link show twill-vxlan | sed 's/^[0-9]*: //'
		ip -o link show type veth | sed 's/^[0-9]*: //; s/@if[0-9]*//'
		ip -o address show | sed 's/^[0-9]*: //'
		cd /proc/sys/net
		grep . ipv4/ip_forward ipv6/conf/all/forwarding ipv4/conf/*/rp_filter ipv4/conf/*/proxy_arp ipv6/conf/*/accept_ra`)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	lines := strings.Split(out, "\n")
	slices.Sort(lines)
	rules, err := l.At(ctx, lab.Node(node), "nft", "-s", "list", "ruleset")
	if err != nil {
		return nil, err
	}
	chains := strings.Split(strings.TrimRight(rules, "}\n"), "}\n\n")
	slices.Sort(chains)
	return append(lines, chains...), nil
}
