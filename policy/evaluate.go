package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/api"
)

// State is everything that a decision depends on, as plain data.
type State struct {
	Namespaces map[string]map[string]string // labels by name
	Endpoints  map[api.Key]Endpoint
	Policies   map[api.Key]*Policy
}

// Connection is what Evaluate judges: its first packet, as one of the two pods'
// policies see it, with services' addresses already translated.
type Connection struct {
	Direction Direction
	Pod       api.Key    // whose policies decide: the receiver's for Ingress, the sender's for Egress
	Peer      netip.Addr // the other end
	Protocol  uint8      // IANA's number
	Port      uint16     // destination port; 0 for protocols without ports

	// FromOwnNode says that the peer is the node that the pod runs on.
	FromOwnNode bool
	// ToOwnNode says that the peer is the node that the pod runs on, and that the
	// cluster is configured to let pods reach their own node whatever their egress
	// policy. Without that, egress policy holds for it: the API excepts the pod's
	// node from ingress policy only.
	ToOwnNode bool
}

// Verdict is an answer with its reason.
type Verdict struct {
	Allowed  bool
	Isolated bool    // at least one policy restricts the pod in this direction
	Policy   api.Key // whose rule allows; zero if none
	Rule     int     // its index in the policy's list for the direction; -1 if none
	Reason   string  // in words; rules are counted from 1 there
	// Considered are the rules of all policies that restrict the pod, in the
	// order of the policies' keys.
	Considered []Considered
}

// Considered is how one policy's rules compare with the connection.
type Considered struct {
	Policy api.Key
	Rules  []RuleMatch // in the policy's order
}

// RuleMatch tells which halves of a rule match. The rule allows the connection
// if Allows is set: with an address that two endpoints share for a moment, Peer
// may match for one and Port for the other.
type RuleMatch struct {
	Peer, Port, Allows bool
}

// Evaluate decides one connection, slowly and straight from the API's
// documentation, which the comments quote.
func Evaluate(s State, c Connection) Verdict {
	v := Verdict{Rule: -1}
	// "Traffic is allowed [...] if the traffic source is the pod's local node"
	if c.Direction == Ingress && c.FromOwnNode {
		v.Allowed, v.Reason = true, "allowed: the peer is the pod's own node"
		return v
	}
	if c.Direction == Egress && c.ToOwnNode {
		v.Allowed, v.Reason = true, "allowed: the peer is the pod's own node, for which egress policy does not hold here (egressToOwnNode is Allow)"
		return v
	}
	pod, known := s.Endpoints[c.Pod]
	if !known {
		v.Allowed, v.Reason = true, fmt.Sprintf("allowed: %s is not a pod on the pod network, so no policy selects it", c.Pod)
		return v
	}
	// "a Pod cannot block access to itself" (concepts, Network Policies): it
	// meets its own policy when it uses a service that it backs.
	if pod.has(c.Peer) {
		v.Allowed, v.Reason = true, "allowed: a pod can't block access to itself"
		return v
	}
	for _, p := range s.selecting(pod, c.Direction) {
		v.Isolated = true
		matches := Considered{Policy: p.Key}
		for i, rule := range p.Rules[c.Direction] {
			m := s.match(p, rule, pod, c)
			matches.Rules = append(matches.Rules, m)
			// "OR if the traffic matches at least one ingress rule across all
			// of the NetworkPolicy objects"
			if m.Allows && !v.Allowed {
				v.Allowed, v.Policy, v.Rule = true, p.Key, i
				v.Reason = fmt.Sprintf("allowed by %s (%s %s)", ruleName(p.Key, c.Direction, i), [...]string{"from", "to"}[c.Direction], rule.peers())
			}
		}
		v.Considered = append(v.Considered, matches)
	}
	switch {
	case !v.Isolated:
		// "Traffic is allowed to a pod if there are no NetworkPolicies
		// selecting the pod"
		v.Allowed, v.Reason = true, fmt.Sprintf("allowed: no policy selects the pod for %s", c.Direction)
	case !v.Allowed:
		v.Reason = v.denial(c)
	}
	return v
}

// selecting are the policies that restrict the pod, sorted by key.
func (s State) selecting(pod Endpoint, d Direction) []*Policy {
	var out []*Policy
	for _, p := range s.Policies {
		// "podSelector selects the pods to which this NetworkPolicy object
		// applies [...] in the policy's namespace"
		if p.Isolates[d] && p.Key.Namespace == pod.Key.Namespace && p.Pods.Matches(pod.Labels) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *Policy) int { return compareKeys(a.Key, b.Key) })
	return out
}

func compareKeys(a, b api.Key) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// match compares a rule with a connection. The peer is an address: each pod
// that has it is tried, and it is nobody's if none has.
func (s State) match(p *Policy, rule Rule, pod Endpoint, c Connection) RuleMatch {
	var m RuleMatch
	owners := s.owners(c.Peer)
	if len(owners) == 0 {
		owners = []*Endpoint{nil}
	}
	for _, owner := range owners {
		peer := s.peerMatches(p, rule, owner, c.Peer)
		holder := owner // "a numerical or named port on a pod": the one that is connected to
		if c.Direction == Ingress {
			holder = &pod
		}
		port := portMatches(rule, holder, c)
		m.Peer = m.Peer || peer
		m.Port = m.Port || port
		// "The traffic must match both ports and from."
		m.Allows = m.Allows || peer && port
	}
	return m
}

func (s State) owners(addr netip.Addr) []*Endpoint {
	var out []*Endpoint
	for _, e := range s.Endpoints {
		if e.has(addr) {
			out = append(out, &e)
		}
	}
	return out
}

func (e Endpoint) has(addr netip.Addr) bool {
	return slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return a.Unmap() == addr.Unmap() })
}

func (s State) peerMatches(p *Policy, rule Rule, owner *Endpoint, addr netip.Addr) bool {
	// "If this field is empty or missing, this rule matches all sources"
	if rule.Everyone {
		return true
	}
	// "Items in this list are combined using a logical OR operation."
	for _, peer := range rule.Peers {
		if peer.Pods == nil {
			if blockContains(peer, addr.Unmap()) {
				return true
			}
			continue
		}
		if owner == nil {
			continue
		}
		// "selects the pods matching podSelector in the Namespaces selected by
		// NamespaceSelector. Otherwise it selects the pods matching podSelector
		// in the policy's own namespace."
		inNamespace := owner.Key.Namespace == p.Key.Namespace
		if peer.Namespaces != nil {
			inNamespace = peer.Namespaces.Matches(s.namespaceLabels(owner.Key.Namespace))
		}
		if inNamespace && peer.Pods.Matches(owner.Labels) {
			return true
		}
	}
	return false
}

// blockContains: "The except entry describes CIDRs that should not be included
// within this rule."
func blockContains(peer Peer, addr netip.Addr) bool {
	return peer.Block.Contains(addr) &&
		!slices.ContainsFunc(peer.Except, func(e netip.Prefix) bool { return e.Contains(addr) })
}

// namespaceLabels are a namespace's labels, with the one that the API server
// puts on every namespace. A namespace that we don't know has no others.
func (s State) namespaceLabels(name string) map[string]string {
	labels := map[string]string{}
	for k, v := range s.Namespaces[name] {
		labels[k] = v
	}
	labels[NamespaceNameLabel] = name
	return labels
}

func portMatches(rule Rule, holder *Endpoint, c Connection) bool {
	// "this rule matches all ports (traffic not restricted by port)": so other
	// protocols too
	if rule.AllPorts {
		return true
	}
	// "Each item in this list is combined using a logical OR."
	for _, p := range rule.Ports {
		// "only traffic on the specified protocol AND port will be matched"
		if p.Protocol != c.Protocol {
			continue
		}
		if p.Name == "" {
			// "the range of ports from port to endPort if set, inclusive"; and
			// "If this field is not provided, this matches all port names and
			// numbers."
			if p.First <= c.Port && c.Port <= p.Last {
				return true
			}
			continue
		}
		if holder != nil && slices.Contains(holder.Ports, NamedPort{p.Name, c.Protocol, c.Port}) {
			return true
		}
	}
	return false
}

func ruleName(policy api.Key, d Direction, index int) string {
	return fmt.Sprintf("%s %s rule %d", policy, d, index+1)
}

// denial says why no rule allows the connection: what came nearest, or who
// restricts the pod.
func (v Verdict) denial(c Connection) string {
	var names, nearly []string
	for _, considered := range v.Considered {
		names = append(names, considered.Policy.String())
		for i, m := range considered.Rules {
			if m.Peer {
				nearly = append(nearly, ruleName(considered.Policy, c.Direction, i))
			}
		}
	}
	if nearly != nil {
		port := ProtocolName(c.Protocol)
		if c.Protocol == TCP || c.Protocol == UDP || c.Protocol == SCTP {
			port += fmt.Sprintf("/%d", c.Port)
		}
		return fmt.Sprintf("denied: %s %s this peer, but not port %s", strings.Join(nearly, " and "), verb(nearly, "allow"), port)
	}
	noun := "policy"
	if len(names) > 1 {
		noun = "policies"
	}
	return fmt.Sprintf("denied: %s %s %s the pod and no rule allows this peer", noun, strings.Join(names, ", "), verb(names, "select"))
}

func verb(subjects []string, plural string) string {
	if len(subjects) == 1 {
		return plural + "s"
	}
	return plural
}
