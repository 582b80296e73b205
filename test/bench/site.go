package main

import (
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/plan"
)

// site is a pair of pods and what is between them.
type site struct {
	name       string
	namespaces []*namespace
	nodes      []*node
	from, to   *namespace
	target     netip.Addr
	client     *client
}

// firewall is what a network that is wired by hand has of netfilter.
type firewall int

const (
	untracked  firewall = iota // nothing
	tracked                    // the rule with which every firewall begins
	translated                 // and hooks of NAT, as whatever balances services has them
)

// how says what is between the two pods of a site.
type how struct {
	// fabric is "" for two pods on one node, else how their nodes are joined:
	// "host-gw" or "vxlan".
	fabric   string
	twill    bool // else the network is wired by hand
	firewall firewall
	// policies is the number of policies in the cluster, of which the first
	// selects both pods, in both directions.
	policies int
	services int
}

// Pods and nodes of all sites.
var (
	podAddrs  = []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.2.2")}
	nodeAddrs = []netip.Addr{netip.MustParseAddr("172.16.10.10"), netip.MustParseAddr("172.16.10.11")}
)

func block(i int) netip.Prefix { return netip.PrefixFrom(podAddrs[i], 24).Masked() }

func (s *site) namespace(name string) (*namespace, error) {
	ns, err := newNamespace(name)
	if err == nil {
		s.namespaces = append(s.namespaces, ns)
	}
	return ns, err
}

func (s *site) close() {
	if s.client != nil {
		s.client.close()
	}
	for _, n := range s.nodes {
		n.close()
	}
	for _, ns := range s.namespaces {
		ns.Close()
	}
}

// newPair joins two pods directly: what no network gets below.
func (b *bench) newPair(name string) (*site, error) {
	s := &site{name: name, target: podAddrs[1]}
	var err error
	if s.from, err = s.namespace("pod0"); err != nil {
		return s, err
	}
	if s.to, err = s.namespace("pod1"); err != nil {
		return s, err
	}
	if err := wire(s.from, s.to, "eth0", "eth0", 1500); err != nil {
		return s, err
	}
	for i, ns := range []*namespace{s.from, s.to} {
		if err := ns.address("eth0", netip.PrefixFrom(podAddrs[i], 16)); err != nil {
			return s, err
		}
	}
	return s, s.connect(b)
}

// newSite makes nodes and pods, and what is between them.
func (b *bench) newSite(name string, h how) (*site, error) {
	s := &site{name: name, target: podAddrs[1]}
	var err error
	if s.from, err = s.namespace("pod0"); err != nil {
		return s, err
	}
	if s.to, err = s.namespace("pod1"); err != nil {
		return s, err
	}
	nodes, err := s.makeNodes(h)
	if err != nil {
		return s, err
	}
	if h.twill {
		err = s.addTwill(h, nodes)
	} else {
		err = s.addRoutes(h, nodes)
	}
	if err != nil {
		return s, err
	}
	return s, s.connect(b)
}

// makeNodes makes two joined nodes and returns the node of each pod: the same
// one twice if the pods share it.
func (s *site) makeNodes(h how) ([]*namespace, error) {
	var nodes []*namespace
	for i := range nodeAddrs {
		ns, err := s.namespace(fmt.Sprintf("node%d", i))
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, ns)
	}
	if err := wire(nodes[0], nodes[1], "eth0", "eth0", 1500); err != nil {
		return nil, err
	}
	for i, ns := range nodes {
		if err := ns.address("eth0", netip.PrefixFrom(nodeAddrs[i], 24)); err != nil {
			return nil, err
		}
	}
	if h.fabric == "" {
		nodes[1] = nodes[0]
	}
	for _, ns := range nodes {
		// Closed connections of earlier rounds are in nobody's way.
		if err := ns.sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", "1"); err != nil {
			return nil, err
		}
		if err := ns.sysctl("ipv4/ip_forward", "1"); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// addRoutes wires the site by hand.
func (s *site) addRoutes(h how, nodes []*namespace) error {
	mtu := 1500
	if h.fabric == "vxlan" {
		mtu = 1450
	}
	for i, ns := range nodes {
		if err := plug(ns, []*namespace{s.from, s.to}[i], fmt.Sprintf("veth%d", i), podAddrs[i], mtu); err != nil {
			return err
		}
		var err error
		switch h.fabric {
		case "host-gw":
			err = ns.route("eth0", block(1-i), nodeAddrs[1-i])
		case "vxlan":
			err = ns.vxlan("eth0", nodeAddrs[i], nodeAddrs[1-i], block(1-i))
		}
		if err != nil {
			return err
		}
		if h.firewall != untracked {
			if err := h.firewall.build(ns); err != nil {
				return err
			}
		}
	}
	return nil
}

// addTwill has Twill connect the pods.
func (s *site) addTwill(h how, nodes []*namespace) error {
	addrs, blocks := map[string]netip.Addr{"node0": nodeAddrs[0]}, map[string]netip.Prefix{"node0": netip.MustParsePrefix("10.244.0.0/22")}
	backend := "host-gw"
	if h.fabric != "" {
		addrs["node1"] = nodeAddrs[1]
		blocks["node0"], blocks["node1"] = block(0), block(1)
		backend = h.fabric
	}
	for i, ns := range nodes {
		if i == 0 || nodes[1] != nodes[0] {
			n, err := newNode(ns)
			if err != nil {
				return err
			}
			s.nodes = append(s.nodes, n)
			if err := n.join(nodeAddrs[len(s.nodes)-1]); err != nil {
				return err
			}
			if err := n.peersOf(backend, addrs, blocks); err != nil {
				return err
			}
		}
		l := s.pod(i)
		if err := s.nodes[len(s.nodes)-1].attach([]*namespace{s.from, s.to}[i], l); err != nil {
			return err
		}
	}
	for i, n := range s.nodes {
		if len(s.nodes) == 2 {
			n.planner.Put(s.published(1 - i))
		}
		if err := n.fill(h); err != nil {
			return err
		}
		if err := n.apply(); err != nil {
			return err
		}
		n.planner = nil // what matters now is in the kernel
	}
	return nil
}

var trafficLabels = map[string]string{"group": "0", "bench": "traffic"}

func (s *site) pod(i int) plan.Local {
	return plan.Local{
		Pod: api.Key{Namespace: "app", Name: fmt.Sprintf("pod%d", i)}, ContainerID: fmt.Sprintf("pod%d", i),
		HostInterface: fmt.Sprintf("tw-pod%d", i), MAC: plan.MAC{2, 2, 0, 0, 0, byte(i)}, Addrs: []netip.Addr{podAddrs[i]}, Labels: trafficLabels,
	}
}

// published is what other nodes know of a pod.
func (s *site) published(i int) *api.WorkloadEndpoint {
	w := remotePod(0, 0)
	w.Namespace, w.Name, w.Labels = "app", fmt.Sprintf("pod%d", i), trafficLabels
	w.Spec.Node, w.Spec.IPNetworks = fmt.Sprintf("node%d", i), []string{podAddrs[i].String() + "/32"}
	return w
}

// fill puts the cluster's policies and services.
func (n *node) fill(h how) error {
	n.planner.Put(namespaceOf("app"))
	if h.policies > 0 {
		n.planner.Put(trafficPolicy())
	}
	if h.policies > 1 {
		s := size{policies: h.policies - 1, remotes: 10 * h.policies}
		if err := s.eachPolicyObject(func(o api.Object) error { return n.put(o) }); err != nil {
			return err
		}
	}
	for i := range h.services {
		n.planner.Put(serviceOf(i))
		addrs := endpointsOf(i, 2)
		if i == 0 {
			addrs = podAddrs[1:]
		}
		for _, s := range slicesOf(i, addrs) {
			n.planner.Put(s)
		}
	}
	return nil
}

// trafficPolicy isolates both pods in both directions, and lets the traffic of
// this benchmark pass.
func trafficPolicy() *networkingv1.NetworkPolicy {
	p := policyOf(0, trafficPort)
	p.Name = "traffic"
	peer := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"bench": "traffic"}}}}
	p.Spec.PodSelector = *peer[0].PodSelector
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peer, Ports: tcpPort(trafficPort)}}
	p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peer, Ports: tcpPort(trafficPort)}}
	return p
}

// connect starts both ends of the traffic.
func (s *site) connect(b *bench) (err error) {
	s.client, err = b.newClient(s.from, s.to, trafficPort)
	return err
}
