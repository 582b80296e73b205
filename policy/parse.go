package policy

import (
	"errors"
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
)

// Parse brings a NetworkPolicy into normal form. A rule that can't be
// understood is left out and told in the error, with its field's path: the
// returned policy then allows less than was asked for, never more. The policy is
// nil only if even the pods that it selects are unknown.
func Parse(np *networkingv1.NetworkPolicy) (*Policy, error) {
	key := api.KeyOf(np)
	pods, err := NewSelector(&np.Spec.PodSelector)
	if err != nil {
		return nil, fmt.Errorf("networkpolicy %s: spec.podSelector.%w", key, err)
	}
	p := &Policy{Key: key, Pods: pods}
	var problems []error
	p.Isolates, err = parseTypes(np.Spec)
	problems = append(problems, err)
	for i, r := range np.Spec.Ingress {
		problems = append(problems, p.addRule(Ingress, fmt.Sprintf("spec.ingress[%d]", i), "from", r.From, r.Ports))
	}
	for i, r := range np.Spec.Egress {
		problems = append(problems, p.addRule(Egress, fmt.Sprintf("spec.egress[%d]", i), "to", r.To, r.Ports))
	}
	if err := errors.Join(problems...); err != nil {
		return p, fmt.Errorf("networkpolicy %s: %w", key, err)
	}
	return p, nil
}

// parseTypes fills in the default of policyTypes: ingress always, egress if
// there are rules for it.
func parseTypes(spec networkingv1.NetworkPolicySpec) (isolates [2]bool, err error) {
	if len(spec.PolicyTypes) == 0 {
		return [2]bool{Ingress: true, Egress: len(spec.Egress) > 0}, nil
	}
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			isolates[Ingress] = true
		case networkingv1.PolicyTypeEgress:
			isolates[Egress] = true
		default:
			// Whatever it was meant to restrict, restrict it.
			return [2]bool{true, true}, fmt.Errorf("spec.policyTypes[%d]: %q is neither Ingress nor Egress", i, t)
		}
	}
	return isolates, nil
}

func (p *Policy) addRule(d Direction, path, peersField string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) error {
	rule := Rule{Everyone: len(peers) == 0, AllPorts: len(ports) == 0}
	var problems []error
	for i, peer := range peers {
		parsed, err := parsePeer(peer)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s.%s[%d]%w", path, peersField, i, err))
			continue
		}
		rule.Peers = append(rule.Peers, parsed)
	}
	for i, port := range ports {
		parsed, err := parsePort(port)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s.ports[%d]%w", path, i, err))
			continue
		}
		rule.Ports = append(rule.Ports, parsed)
	}
	// The rule stays, without its bad items, so that rules keep their numbers.
	p.Rules[d] = append(p.Rules[d], rule)
	return errors.Join(problems...)
}

func parsePeer(peer networkingv1.NetworkPolicyPeer) (Peer, error) {
	if peer.IPBlock != nil {
		if peer.PodSelector != nil || peer.NamespaceSelector != nil {
			return Peer{}, errors.New(": ipBlock can't be combined with podSelector or namespaceSelector; make it an item of its own")
		}
		return parseBlock(peer.IPBlock)
	}
	if peer.PodSelector == nil && peer.NamespaceSelector == nil {
		return Peer{}, errors.New(": a peer needs a podSelector, a namespaceSelector or an ipBlock; to allow everybody leave out the list")
	}
	out := Peer{Pods: selectorOf()}
	var err error
	if peer.PodSelector != nil {
		if out.Pods, err = NewSelector(peer.PodSelector); err != nil {
			return Peer{}, fmt.Errorf(".podSelector.%w", err)
		}
	}
	if peer.NamespaceSelector != nil {
		if out.Namespaces, err = NewSelector(peer.NamespaceSelector); err != nil {
			return Peer{}, fmt.Errorf(".namespaceSelector.%w", err)
		}
	}
	return out, nil
}

func parseBlock(b *networkingv1.IPBlock) (Peer, error) {
	block, err := parsePrefix(b.CIDR)
	if err != nil {
		return Peer{}, fmt.Errorf(".ipBlock.cidr: %w", err)
	}
	out := Peer{Block: block}
	for i, text := range b.Except {
		except, err := parsePrefix(text)
		if err != nil {
			return Peer{}, fmt.Errorf(".ipBlock.except[%d]: %w", i, err)
		}
		if !block.Contains(except.Addr()) || except.Bits() < block.Bits() {
			return Peer{}, fmt.Errorf(".ipBlock.except[%d]: %s is not inside %s", i, text, b.CIDR)
		}
		out.Except = append(out.Except, except)
	}
	return out, nil
}

// parsePrefix accepts host bits, which the API server lets pass, and cuts them
// off. IPv4 written as IPv6 (RFC 4291 §2.5.5.2) becomes IPv4, because that is
// what is on the wire.
func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a prefix such as 192.0.2.0/24 or 2001:db8::/64", text)
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

func parsePort(port networkingv1.NetworkPolicyPort) (Port, error) {
	out := Port{Protocol: TCP}
	var err error
	if port.Protocol != nil {
		if out.Protocol, err = ProtocolOf(*port.Protocol); err != nil {
			return Port{}, fmt.Errorf(".protocol: %w", err)
		}
	}
	switch {
	case port.Port == nil && port.EndPort != nil:
		return Port{}, errors.New(".endPort: needs a port that the range starts with")
	case port.Port == nil:
		out.Last = 65535
	case port.Port.Type == intstr.String:
		if port.EndPort != nil {
			return Port{}, fmt.Errorf(".endPort: a range can't start with the named port %q", port.Port.StrVal)
		}
		if port.Port.StrVal == "" {
			return Port{}, errors.New(".port: the name is empty")
		}
		out.Name = port.Port.StrVal
	default:
		first, last := port.Port.IntVal, port.Port.IntVal
		if port.EndPort != nil {
			last = *port.EndPort
		}
		if first < 1 || last > 65535 {
			return Port{}, fmt.Errorf(".port: %d-%d is not inside 1-65535", first, last)
		}
		if last < first {
			return Port{}, fmt.Errorf(".endPort: %d is smaller than port %d", last, first)
		}
		out.First, out.Last = uint16(first), uint16(last)
	}
	return out, nil
}
