package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/policy"
	"github.com/twill-net/twill/service"
)

// Verdict is what comes of a connection.
type Verdict string

// The verdicts. Partly means that it depends on the endpoint that a service
// happens to choose.
const (
	Allowed  Verdict = "allowed"
	Denied   Verdict = "denied"   // dropped without an answer, by policy
	Rejected Verdict = "rejected" // refused at once: nobody serves it
	Dropped  Verdict = "dropped"  // dropped without an answer: nobody serves it here
	Partly   Verdict = "partly"
)

// Query asks about one connection.
type Query struct {
	Namespace string // for names without one
	From, To  string
	Protocol  uint8  // 0 with a PortName: the first that has a port of that name
	Port      uint16 // 0 with a PortName
	PortName  string // of the pod or Service; empty: Port counts
}

// Report is the answer.
type Report struct {
	From     Party        `json:"from"`
	To       Party        `json:"to"`
	Protocol string       `json:"protocol"`
	Port     uint16       `json:"port"`
	Source   netip.Addr   `json:"source"`
	Address  netip.Addr   `json:"address"` // that the connection is made to
	Service  *Translation `json:"service,omitempty"`
	Ways     []Way        `json:"ways,omitempty"` // one for each endpoint that may be chosen
	Verdict  Verdict      `json:"verdict"`
	Sentence string       `json:"sentence"`
}

// Translation is what a service does to the connection.
type Translation struct {
	Service string `json:"service"`
	Class   string `json:"class"`
	Node    string `json:"node"` // that translates
	// KeepsSource says whether the endpoint sees the client's own address.
	KeepsSource bool `json:"keepsSource"`
}

// Way is one way that the connection may take.
type Way struct {
	To      netip.AddrPort `json:"to"`
	Pod     *api.Key       `json:"pod,omitempty"`
	Node    string         `json:"node,omitempty"`
	Seen    netip.Addr     `json:"seen"` // the source as the other end sees it
	Egress  *Decision      `json:"egress,omitempty"`
	Route   string         `json:"route"`
	Ingress *Decision      `json:"ingress,omitempty"`
	Allowed bool           `json:"allowed"`
	Reason  string         `json:"reason"` // what decided
}

// Decision is what policy says on one side.
type Decision struct {
	Allowed bool   `json:"allowed"`
	Policy  string `json:"policy,omitempty"`
	Rule    int    `json:"rule,omitempty"` // from 1
	Reason  string `json:"reason"`
}

// Trace answers a query. An error means that the question makes no sense in this
// cluster.
func (s *Snapshot) Trace(q Query) (*Report, error) {
	from, err := s.resolve(q.From, q.Namespace, false)
	if err != nil {
		return nil, err
	}
	to, err := s.resolve(q.To, q.Namespace, true)
	if err != nil {
		return nil, err
	}
	if q.PortName != "" {
		if q.Protocol, q.Port, err = s.namedPort(to, q.PortName, q.Protocol); err != nil {
			return nil, err
		}
	}
	r := &Report{From: from, To: to, Protocol: policy.ProtocolName(q.Protocol), Port: q.Port}
	if r.Source, r.Address, err = commonFamily(from, to); err != nil {
		return nil, err
	}
	s.follow(r, q.Protocol)
	return r, nil
}

// commonFamily picks the addresses that the two use: IPv4 if both have it.
func commonFamily(from, to Party) (src, dst netip.Addr, err error) {
	for _, v6 := range []bool{false, true} {
		src, okSrc := from.addr(v6)
		dst, okDst := to.addr(v6)
		if okSrc && okDst {
			return src, dst, nil
		}
	}
	return src, dst, fmt.Errorf("%s and %s have no address family in common", from, to)
}

func (s *Snapshot) follow(r *Report, proto uint8) {
	at := r.From.Node // that translates: the first node of the cluster on the way
	if r.To.About == "node" {
		at = r.To.Node // node ports are served at the address's own node
	}
	key, f, ok := s.frontendAt(at, r.Address, proto, r.Port)
	if !ok { // as on a node, a Service wins
		key, at, f, ok = s.hostPortAt(r.Address, proto, r.Port)
	}
	switch {
	case ok:
		s.translate(r, proto, at, key, f)
	case r.To.About == "service":
		r.Verdict = Rejected
		r.Sentence = fmt.Sprintf("rejected: %s has no port %s/%d", r.To, r.Protocol, r.Port)
	default:
		r.Ways = []Way{s.way(r, proto, "", netip.AddrPortFrom(r.Address, r.Port), r.Source)}
		r.conclude()
	}
}

// translate follows a connection to a service's front end on a node.
func (s *Snapshot) translate(r *Report, proto uint8, at string, key api.Key, f service.Frontend) {
	inside := r.From.Node == at && at != "" // other nodes' pods count as outside
	backends := f.Backends
	if f.Local && !inside {
		backends = f.LocalBackends
	}
	// What enters the cluster at a node and is translated there has to come
	// back through it, so its source is that node, unless the endpoint is
	// sure to be there too.
	keeps := inside || f.Local
	r.Service = &Translation{Service: key.String(), Class: f.Class.String(), Node: at, KeepsSource: keeps}
	letIn := f.LetsIn(r.Source)
	if len(backends) == 0 || !letIn {
		// What another node refuses has to pass the pod's own policy first.
		if r.From.Pod != nil && !inside {
			if w := s.way(r, proto, "", netip.AddrPortFrom(r.Address, r.Port), r.Source); !w.Allowed {
				r.Ways = []Way{w}
				r.conclude()
				return
			}
		}
		r.Verdict, r.Sentence = Rejected, fmt.Sprintf("rejected: service %s has no endpoints", key)
		switch {
		case !letIn:
			r.Verdict, r.Sentence = Dropped, fmt.Sprintf("dropped: loadBalancerSourceRanges of service %s do not contain %s", key, r.Source)
		case f.Refusal == service.Drop:
			r.Verdict, r.Sentence = Dropped, fmt.Sprintf("dropped: service %s has no endpoint on node %s, and its traffic policy is Local", key, at)
		}
		return
	}
	for _, b := range backends {
		seen := r.Source
		if n := s.nodes[at]; !keeps && n != nil {
			for _, a := range api.NodeAddresses(n) {
				if a.Is6() == seen.Is6() {
					seen = a
				}
			}
		}
		r.Ways = append(r.Ways, s.way(r, proto, at, b, seen))
	}
	r.conclude()
}

// way follows a connection to one address; at is the node that translated it to
// that, if one did.
func (s *Snapshot) way(r *Report, proto uint8, at string, to netip.AddrPort, seen netip.Addr) Way {
	w := Way{To: to, Seen: seen, Allowed: true, Reason: "nothing forbids it"}
	dst := s.byAddress(to.Addr())
	w.Pod, w.Node = dst.Pod, dst.Node

	if r.From.Pod != nil {
		// Policy sees translated addresses, if the translation is this node's.
		peer, port := to.Addr(), to.Port()
		if at != "" && at != r.From.Node {
			peer, port = r.Address, r.Port
		}
		// Of a connection that another node translates, the pod's node knows where
		// it goes at first.
		first := s.byAddress(peer)
		toOwnNode := first.About == "node" && first.Node == r.From.Node && fabric.ConfigFrom(s.fabric).EgressToOwnNode == api.AllowEgressToOwnNode
		w.Egress = s.decide(policy.Connection{Direction: policy.Egress, Pod: *r.From.Pod, Peer: peer, Protocol: proto, Port: port, ToOwnNode: toOwnNode})
		if !w.Egress.Allowed {
			w.Allowed, w.Reason = false, w.Egress.Reason
		}
	}
	start := r.From.Node
	if at != "" && at != start {
		start = at
	}
	route, err := s.route(start, dst, to.Addr())
	w.Route = route
	if err != nil && w.Allowed {
		w.Allowed, w.Reason = false, err.Error()
	}
	if dst.Pod != nil {
		peer := seen
		// The policy hook comes before the masquerade on the same node.
		if at == dst.Node {
			peer = r.Source
		}
		// By another node's node port a node comes back as that other node.
		fromOwnNode := r.From.About == "node" && start == dst.Node && r.From.Node == dst.Node && dst.Node != ""
		w.Ingress = s.decide(policy.Connection{Direction: policy.Ingress, Pod: *dst.Pod, Peer: peer, Protocol: proto, Port: to.Port(), FromOwnNode: fromOwnNode})
		if !w.Ingress.Allowed && w.Allowed {
			w.Allowed, w.Reason = false, w.Ingress.Reason
		}
		if w.Allowed {
			w.Reason = w.Ingress.Reason
		}
	}
	return w
}

func (s *Snapshot) decide(c policy.Connection) *Decision {
	v := policy.Evaluate(s.policies, c)
	d := &Decision{Allowed: v.Allowed, Reason: v.Reason}
	if v.Rule >= 0 {
		d.Policy, d.Rule = v.Policy.String(), v.Rule+1
	}
	return d
}

// route says in words which way packets take from a node.
func (s *Snapshot) route(from string, dst Party, addr netip.Addr) (string, error) {
	switch {
	case from == "":
		return "from outside the cluster to node " + dst.Node, nil
	case dst.About == "outside":
		return "out of the cluster by node " + from + "'s own routes", nil
	case from == dst.Node:
		return "stays on node " + from, nil
	case dst.About == "node":
		return fmt.Sprintf("node %s → node %s, direct", from, dst.Node), nil
	}
	path, err := s.path(from, dst.Node, addr)
	if err != nil {
		return fmt.Sprintf("node %s → node %s: no way", from, dst.Node), errors.New("denied: node " + from + " has no way to node " + dst.Node + ": " + err.Error())
	}
	text := fmt.Sprintf("node %s → node %s by %s, device %s", from, dst.Node, path.Backend, path.Link)
	if path.Tunnel() {
		text += fmt.Sprintf(" to %s", path.Remote)
	} else {
		text += fmt.Sprintf(" via %s", path.NextHop)
	}
	return text, nil
}

// conclude sums up the ways.
func (r *Report) conclude() {
	allowed := 0
	var reasons []string
	seen := map[string]bool{}
	for _, w := range r.Ways {
		if w.Allowed {
			allowed++
		}
	}
	r.Verdict = Partly
	switch allowed {
	case 0:
		r.Verdict = Denied
	case len(r.Ways):
		r.Verdict = Allowed
	}
	for _, w := range r.Ways {
		if !seen[w.Reason] && (r.Verdict != Partly || !w.Allowed) {
			seen[w.Reason] = true
			reasons = append(reasons, w.Reason)
		}
	}
	connection := fmt.Sprintf("%s to %s:%d/%s", r.From, r.To, r.Port, r.Protocol)
	switch r.Verdict {
	case Partly:
		r.Sentence = fmt.Sprintf("%s is allowed to %d of %d endpoints: %s", connection, allowed, len(r.Ways), strings.Join(reasons, "; "))
	default:
		r.Sentence = fmt.Sprintf("%s is %s", connection, r.Verdict)
		for i, reason := range trimVerdicts(reasons) {
			switch {
			case i > 0:
				r.Sentence += "; "
			case !strings.HasPrefix(reason, "by "):
				r.Sentence += ": "
			default:
				r.Sentence += " "
			}
			r.Sentence += reason
		}
	}
}

// trimVerdicts drops the words that the sentence has said already.
func trimVerdicts(reasons []string) []string {
	out := make([]string, len(reasons))
	for i, reason := range reasons {
		reason = strings.TrimPrefix(strings.TrimPrefix(reason, "denied: "), "allowed: ")
		out[i] = strings.TrimPrefix(reason, "allowed ")
	}
	return out
}
