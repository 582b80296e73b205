package trace

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/api"
)

// Party is one end of a connection.
type Party struct {
	Text  string       `json:"text"`            // as it was asked for
	Pod   *api.Key     `json:"pod,omitempty"`   // if it is a pod
	Node  string       `json:"node,omitempty"`  // the pod's node, or the node that it is, or whose block an unknown address is of
	Addrs []netip.Addr `json:"addresses"`       // one a family; of a service its cluster IPs
	About string       `json:"about,omitempty"` // "pod", "node", "service", "outside"
}

// String names the party in a sentence.
func (p Party) String() string {
	switch {
	case p.Pod != nil:
		return "pod " + p.Pod.String()
	case p.About == "outside":
		return p.Addrs[0].String()
	}
	return p.About + " " + p.Text
}

func (p Party) addr(v6 bool) (netip.Addr, bool) {
	i := slices.IndexFunc(p.Addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
	if i < 0 {
		return netip.Addr{}, false
	}
	return p.Addrs[i], true
}

// resolve finds whom a word means: an address, "node/NAME", "svc/NAME",
// "pod/NAME", "NAMESPACE/NAME", a service's DNS name, or a bare name, which is
// a service's if there is one and services are meant, else a pod's.
func (s *Snapshot) resolve(word, namespace string, services bool) (Party, error) {
	if addr, err := netip.ParseAddr(strings.Trim(word, "[]")); err == nil {
		return s.byAddress(addr.Unmap()), nil
	}
	kind, name, typed := strings.Cut(word, "/")
	switch {
	case typed && (kind == "node" || kind == "no"):
		return s.node(name)
	case typed && (kind == "svc" || kind == "service"):
		return s.service(serviceKey(name, namespace))
	case typed && (kind == "pod" || kind == "po"):
		return s.pod(api.Key{Namespace: namespace, Name: name})
	case typed:
		namespace, word = kind, name
	}
	if services {
		if p, err := s.service(serviceKey(word, namespace)); err == nil {
			return p, nil
		}
	}
	p, err := s.pod(api.Key{Namespace: namespace, Name: word})
	if err != nil && services {
		err = fmt.Errorf("namespace %s has neither a service nor a pod %q", namespace, word)
	}
	return p, err
}

// serviceKey reads "name", "name.namespace" and the DNS names that start so.
func serviceKey(name, namespace string) api.Key {
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	if len(labels) > 1 && (len(labels) == 2 || labels[2] == "svc") {
		return api.Key{Namespace: labels[1], Name: labels[0]}
	}
	return api.Key{Namespace: namespace, Name: name}
}

func (s *Snapshot) pod(key api.Key) (Party, error) {
	e, ok := s.policies.Endpoints[key]
	if !ok {
		return Party{}, fmt.Errorf("there is no pod %s", key)
	}
	return Party{Text: key.Name, Pod: &key, Node: s.pods[key].Spec.Node, Addrs: e.Addrs, About: "pod"}, nil
}

func (s *Snapshot) node(name string) (Party, error) {
	n := s.nodes[name]
	if n == nil {
		return Party{}, fmt.Errorf("there is no node %q", name)
	}
	return Party{Text: name, Node: name, Addrs: api.NodeAddresses(n), About: "node"}, nil
}

func (s *Snapshot) service(key api.Key) (Party, error) {
	svc := s.services[key]
	if svc == nil {
		return Party{}, fmt.Errorf("there is no service %s with a cluster IP", key)
	}
	return Party{Text: key.String(), Addrs: svc.ClusterIPs, About: "service"}, nil
}

func (s *Snapshot) byAddress(addr netip.Addr) Party {
	for key, e := range s.policies.Endpoints {
		if slices.Contains(e.Addrs, addr) {
			return Party{Text: addr.String(), Pod: &key, Node: s.pods[key].Spec.Node, Addrs: []netip.Addr{addr}, About: "pod"}
		}
	}
	for name, n := range s.nodes {
		if slices.Contains(api.NodeAddresses(n), addr) {
			return Party{Text: name, Node: name, Addrs: []netip.Addr{addr}, About: "node"}
		}
	}
	if key, ok := s.serviceOf(addr); ok {
		return Party{Text: key.String(), Addrs: []netip.Addr{addr}, About: "service"}
	}
	return Party{Text: addr.String(), Node: s.blockOwner(addr), Addrs: []netip.Addr{addr}, About: "outside"}
}

// blockOwner is the node to which replies to an address go: pods that twill-cni has
// not attached may have an address of its blocks.
func (s *Snapshot) blockOwner(addr netip.Addr) (node string) {
	for _, b := range s.blocks {
		if p, err := netip.ParsePrefix(b.Spec.CIDR); err == nil && p.Contains(addr) {
			node, _ = b.Owner()
		}
	}
	return node
}

func compareKeys(a, b api.Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
