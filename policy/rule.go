package policy

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/twill-net/twill/api"
)

// compiledPolicy is a policy in the compiler. It stays the same value while the
// policy's content changes.
type compiledPolicy struct {
	key      api.Key
	isolates [2]bool
	rules    [2][]*compiledRule
	named    map[NamedPort]struct{} // of ingress rules; Port is 0
	subject  *selector[*compiledPolicy]
	groups   map[*group]struct{} // that it contributes to
}

// compiledRule is a rule with its peers ready to be united with those of other
// rules.
type compiledRule struct {
	policy     *compiledPolicy
	everyone   bool
	selections []*selection
	ranges     []netipx.IPRange // of all blocks
	allPorts   bool
	ports      []Port // numeric
	named      []Port
}

func (cp *compiledPolicy) compile(p *Policy) {
	cp.isolates = p.Isolates
	cp.rules, cp.named = [2][]*compiledRule{}, nil
	own := selectName(p.Key.Namespace)
	for d, rules := range p.Rules {
		for _, r := range rules {
			cp.rules[d] = append(cp.rules[d], cp.compileRule(r, own))
		}
	}
	for _, r := range cp.rules[Ingress] {
		for _, port := range r.named {
			if cp.named == nil {
				cp.named = map[NamedPort]struct{}{}
			}
			cp.named[NamedPort{Name: port.Name, Protocol: port.Protocol}] = struct{}{}
		}
	}
}

func (cp *compiledPolicy) compileRule(r Rule, own *Selector) *compiledRule {
	out := &compiledRule{policy: cp, everyone: r.Everyone, allPorts: r.AllPorts}
	for _, port := range r.Ports {
		if port.Name == "" {
			out.ports = append(out.ports, port)
		} else {
			out.named = append(out.named, port)
		}
	}
	for _, peer := range r.Peers {
		switch {
		case peer.Pods == nil:
			out.ranges = append(out.ranges, blockRanges(peer)...)
		case peer.Namespaces == nil:
			out.selections = append(out.selections, newSelection(own, peer.Pods))
		default:
			out.selections = append(out.selections, newSelection(peer.Namespaces, peer.Pods))
		}
	}
	return out
}

func blockRanges(p Peer) []netipx.IPRange {
	if len(p.Except) == 0 {
		return []netipx.IPRange{netipx.RangeOfPrefix(p.Block)}
	}
	var b netipx.IPSetBuilder
	b.AddPrefix(p.Block)
	for _, e := range p.Except {
		b.RemovePrefix(e)
	}
	return mergedRanges(&b)
}

// mergedRanges are what a builder holds, sorted and without overlaps.
func mergedRanges(b *netipx.IPSetBuilder) []netipx.IPRange {
	// The only errors are of prefixes that are not valid, which Parse refuses:
	// nothing valid is lost by leaving those out.
	set, _ := b.IPSet()
	if set == nil {
		return nil
	}
	return set.Ranges()
}

func inRanges(ranges []netipx.IPRange, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r netipx.IPRange) bool { return r.Contains(a) })
}

// selection is pods with certain labels in namespaces with certain labels.
// Selections with the same id are the same.
type selection struct {
	id               selectionID
	namespaces, pods *Selector
}

type selectionID [16]byte

func newSelection(namespaces, pods *Selector) *selection {
	sum := sha256.Sum256([]byte(namespaces.String() + "\n" + pods.String()))
	return &selection{selectionID(sum[:16]), namespaces, pods}
}

// String is such as "run=access in policy-demo".
func (s *selection) String() string {
	pods := s.pods.String()
	if s.pods.Everything() {
		pods = "all pods"
	}
	if name, ok := s.namespaces.namespaceName(); ok {
		return pods + " in " + name
	}
	if s.namespaces.Everything() {
		return pods
	}
	return fmt.Sprintf("%s in namespaces %s", pods, s.namespaces)
}
