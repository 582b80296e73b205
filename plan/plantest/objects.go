package plantest

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/plan"
)

func (w *World) namespaceName() string { return pick(w, "a", "b", "c") }

func (w *World) nodeName() string { return pick(w, Self, "node01", "node02", "node03") }

func (w *World) labels() map[string]string {
	out := map[string]string{}
	for _, key := range []string{"app", "tier"} {
		if w.chance(60) {
			out[key] = pick(w, "x", "y", "z")
		}
	}
	return out
}

// podAddr is one of few addresses that pods have.
func (w *World) podAddr(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:10:244::%x:%x", w.IntN(2), 1+w.IntN(6)))
	}
	return netip.AddrFrom4([4]byte{10, 244, byte(w.IntN(2)), byte(1 + w.IntN(6))})
}

func (w *World) podAddrs() (out []netip.Addr) {
	for _, v6 := range []bool{false, true} {
		if w.chance(70) {
			out = append(out, w.podAddr(v6))
		}
	}
	return out
}

func (w *World) namespace() Event {
	n := api.NamespaceKind.New().(*corev1.Namespace)
	n.Name, n.Labels = w.namespaceName(), w.labels()
	return put(n)
}

func (w *World) node() Event {
	n := api.NodeKind.New().(*corev1.Node)
	n.Name = w.nodeName()
	if w.chance(50) {
		n.Labels = map[string]string{corev1.LabelTopologyZone: pick(w, "z1", "z2")}
	}
	host := map[string]int{Self: 10, "node01": 11, "node02": 12, "node03": 13}[n.Name]
	if w.odd(20) {
		host = 11 + w.IntN(3) // somebody else's address
	}
	add := func(text string) {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: text})
	}
	link := pick(w, 10, 10, 10, 20) // another link is reached by tunnels alone
	if n.Name == Self {
		link = 10
	}
	if w.chance(90) {
		add(fmt.Sprintf("172.16.%d.%d", link, host))
	}
	if w.chance(60) {
		add(fmt.Sprintf("fd00:172:16:%d::%d", link, host))
	}
	if w.chance(50) {
		n.Status.Capacity = corev1.ResourceList{corev1.ResourceCPU: *resource.NewQuantity(int64(w.IntN(16)), resource.DecimalSI)}
	}
	receives := api.Receives{}
	if w.chance(80) {
		receives[api.BackendVXLAN] = api.ReceiveParameters{
			MAC: fmt.Sprintf("02:00:00:00:00:%02x", host), VNI: pick(w, 1, 1, 1, 2), Port: pick(w, 8472, 8472, 8472, 4789),
		}
	}
	if w.chance(60) {
		receives[api.BackendHostGW] = api.ReceiveParameters{}
	}
	text, err := json.Marshal(receives)
	if err != nil {
		panic(err) // of a map of our own
	}
	n.Annotations = map[string]string{api.ReceivesAnnotation: string(text)}
	if w.odd(20) {
		n.Annotations[api.AddressClaimAnnotation] = pick(w, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "x")
	}
	if w.odd(20) {
		n.CreationTimestamp = metav1.NewTime(time.Unix(int64(1e9+w.IntN(2)), 0))
	}
	switch {
	case w.odd(10):
		n.Annotations[api.ReceivesAnnotation] = pick(w, "{", `{"vxlan":{"mac":"x","vni":1,"port":8472}}`, "null")
	case w.chance(10):
		n.Annotations = nil
	}
	return put(n)
}

func (w *World) fabricConfiguration() Event {
	f := api.FabricConfigurationKind.New().(*api.FabricConfiguration)
	f.Name = api.FabricConfigurationName
	if w.odd(10) {
		f.Name = "other"
	}
	f.Spec.Preference = pick(w, nil, []string{"vxlan"}, []string{"host-gw"}, []string{"host-gw", "vxlan"}, []string{"vxlan", "host-gw"})
	if w.chance(30) {
		f.Spec.VXLAN = &api.VXLANConfiguration{VNI: pick(w, 0, 1, 2), Port: pick(w, 0, 8472, 4789)}
	}
	return put(f)
}

func (w *World) pool() Event {
	p := api.IPPoolKind.New().(*api.IPPool)
	p.Name = pick(w, "p4", "p6", "q4")
	p.Spec.CIDR = map[string]string{"p4": "10.244.0.0/23", "p6": "fd00:10:244::/112", "q4": "10.245.0.0/24"}[p.Name]
	switch {
	case w.odd(15):
		p.Spec.CIDR = pick(w, "10.244.0.0/16", "10.244.1.0/24", "fd00:10:244::/64") // within each other
	case w.odd(5):
		p.Spec.CIDR = "172.16.0.0/12" // over the nodes
	case w.odd(5):
		p.Spec.CIDR = "10.244.0.0/33"
	}
	p.Spec.NATOutgoing = w.chance(50)
	p.Spec.VXLANMode = pick(w, "", "", api.EncapAlways, api.EncapCrossSubnet, api.EncapNever)
	return put(p)
}

func (w *World) block() Event {
	b := api.IPAMBlockKind.New().(*api.IPAMBlock)
	n := w.IntN(8)
	prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n / 4), byte(n % 4 * 64)}), 26)
	if n >= 6 {
		prefix = netip.MustParsePrefix(fmt.Sprintf("fd00:10:244::%x:0/120", n-5))
	}
	b.Name = fmt.Sprint("block-", n)
	b.Spec.CIDR, b.Spec.Affinity = prefix.String(), api.AffinityOf(w.nodeName())
	switch {
	case w.odd(10): // the same under another name
		b.Name = fmt.Sprint("block-", w.IntN(8))
	case w.odd(5):
		b.Spec.Affinity = pick(w, "", "host:", "virtual:x")
	case w.odd(5):
		b.Spec.CIDR = pick(w, "10.244.0.0", "10.244.0.7/26", "10.244.0.1/32")
	case w.odd(5): // over nodes of either link, or over what the host reserves
		b.Spec.CIDR = pick(w, "172.16.10.8/29", "172.16.20.0/24", "fd00:172:16:20::/120", "198.51.100.0/26")
	case w.chance(5):
		b.Spec.Affinity = api.AffinityOf("node09") // of which there is no object
	}
	return put(b)
}

func (w *World) ports() (out []api.WorkloadEndpointPort) {
	for _, name := range []string{"http", "dns"} {
		if !w.chance(50) {
			continue
		}
		p := api.WorkloadEndpointPort{Name: name, Protocol: pick(w, corev1.ProtocolTCP, corev1.ProtocolUDP), Port: pick[int32](w, 80, 81, 5000)}
		if w.chance(30) {
			p.HostPort = pick[int32](w, 80, 8080, 30080)
			p.HostIP = pick(w, "", "", "0.0.0.0", "::", "172.16.10.10")
			if w.odd(20) {
				p.HostIP = pick(w, "127.0.0.1", "10.1.0.10", "x")
			}
		}
		if w.odd(5) {
			p.Protocol = "ICMP"
		}
		out = append(out, p)
	}
	return out
}

func (w *World) endpoint() Event {
	e := api.WorkloadEndpointKind.New().(*api.WorkloadEndpoint)
	e.Namespace, e.Name = w.namespaceName(), pick(w, "1", "2", "3")
	e.Labels = w.labels()
	e.Spec.Node, e.Spec.ContainerID = w.nodeName(), pick(w, "c1", "c2")
	for _, a := range w.podAddrs() {
		e.Spec.IPNetworks = append(e.Spec.IPNetworks, netip.PrefixFrom(a, a.BitLen()).String())
	}
	if w.odd(5) {
		e.Spec.IPNetworks = pick(w, []string{"10.244.0.0/24"}, []string{"x"}, []string{"::ffff:10.244.0.1/128"})
	}
	e.Spec.Ports = w.ports()
	return put(e)
}

// local is a pod of this node. Each device has addresses of its own where the
// world has sense: no two pods are given one.
func (w *World) local() Event {
	i := w.IntN(len(w.HostInterfaces))
	l := plan.Local{
		Pod: api.Key{Namespace: w.namespaceName(), Name: pick(w, "1", "2", "3")}, ContainerID: pick(w, "c1", "c2"),
		HostInterface: w.HostInterfaces[i], MAC: plan.MAC{2, 0, 0, 1, byte(i), byte(w.IntN(2))},
		MTU: pick(w, 0, 0, 1450, 1400), Labels: w.labels(), Ports: w.ports(), Addrs: w.podAddrs(),
	}
	if w.settled.Sense {
		l.Addrs = nil
		if v4 := w.chance(80); v4 {
			l.Addrs = append(l.Addrs, netip.AddrFrom4([4]byte{10, 244, 0, byte(1 + i)}))
		}
		if w.chance(60) {
			l.Addrs = append(l.Addrs, netip.MustParseAddr(fmt.Sprintf("fd00:10:244::%x", 1+i)))
		}
	}
	return Event{subject: subjectLocal + " " + l.HostInterface, tell: func(pl *plan.Planner) { pl.SetLocal(l) }}
}

func (w *World) underlay() Event {
	u := fabric.Underlay{Link: "eth0", MTU: pick(w, 1500, 1500, 9000)}
	u.Prefixes = pick(w, Underlay.Prefixes, Underlay.Prefixes[:1], Underlay.Prefixes[1:], nil)
	if w.odd(10) {
		u.Link = ""
	}
	return Event{subject: subjectUnderlay, tell: func(pl *plan.Planner) { pl.SetUnderlay(u) }}
}

// reserved are prefixes that the host needs for itself.
func (w *World) reserved() Event {
	r := some(w, 3,
		plan.Reserved{Prefix: netip.MustParsePrefix("198.51.100.10/32"), What: "the store"},
		plan.Reserved{Prefix: netip.MustParsePrefix("10.244.0.3/32"), What: "the default gateway"},
		plan.Reserved{Prefix: netip.MustParsePrefix("10.244.1.0/25"), What: "the network of cni0"},
		plan.Reserved{Prefix: netip.MustParsePrefix("10.244.0.70/32"), What: "an address of tunl0", Local: true},
	)
	return Event{subject: subjectReserved, tell: func(pl *plan.Planner) { pl.SetReserved(r) }}
}

func (w *World) externalIPs() Event {
	ranges := some(w, 2, netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("10.1.0.0/24"))
	return Event{subject: subjectExternalIPs, tell: func(pl *plan.Planner) { pl.SetExternalIPRanges(ranges) }}
}

var protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

func (w *World) service() Event {
	s := api.ServiceKind.New().(*corev1.Service)
	s.Namespace, s.Name = w.namespaceName(), pick(w, "web", "db")
	s.CreationTimestamp = metav1.NewTime(time.Unix(int64(1e9+w.IntN(3)), 0))
	s.Spec.Type = pick(w, corev1.ServiceTypeClusterIP, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer)
	// A few cluster IPs for all, so that two may have one.
	ips := some(w, 2, fmt.Sprintf("10.1.0.%d", 10+w.IntN(3)), fmt.Sprintf("fd00:10:1::%d", 10+w.IntN(3)))
	slices.Sort(ips)
	if len(ips) > 0 {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = ips[0], ips
	}
	for _, name := range []string{"http", "dns"} {
		p := corev1.ServicePort{Name: name, Protocol: pick(w, protocols...), Port: pick[int32](w, 80, 53, 443)}
		if s.Spec.Type != corev1.ServiceTypeClusterIP && w.chance(80) {
			p.NodePort = pick[int32](w, 30080, 30081)
		}
		if w.chance(70) {
			s.Spec.Ports = append(s.Spec.Ports, p)
		}
	}
	s.Spec.ExternalIPs = some(w, 2, "198.51.100.7", "2001:db8::7", "203.0.113.7", "10.1.0.10")
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, ip := range some(w, 2, "198.51.100.8", "2001:db8::8") {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		s.Spec.LoadBalancerSourceRanges = some(w, 3, "203.0.113.0/24", "203.0.113.128/25", "10.0.0.0/8", "172.16.0.0/16", "2001:db8:1::/48")
	}
	w.trafficPolicies(s)
	return put(s)
}

func (w *World) trafficPolicies(s *corev1.Service) {
	if w.chance(30) {
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if w.chance(20) {
		local := corev1.ServiceInternalTrafficPolicyLocal
		s.Spec.InternalTrafficPolicy = &local
	}
	if w.chance(30) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		if w.chance(50) {
			seconds := pick[int32](w, 10, 60)
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}
	}
	switch {
	case w.chance(5):
		s.Spec.ClusterIP = corev1.ClusterIPNone
	case w.chance(5):
		s.Spec.Type = corev1.ServiceTypeExternalName
	case w.odd(5):
		s.Spec.ClusterIPs, s.Spec.SessionAffinity = []string{"x", "10.1.0.11"}, "Cookie"
	case w.odd(5) && len(s.Spec.Ports) > 0:
		s.Spec.Ports[0].Port = 70000
	}
}

func (w *World) endpointSlice() Event {
	s := api.EndpointSliceKind.New().(*discoveryv1.EndpointSlice)
	s.Namespace, s.Name = w.namespaceName(), pick(w, "s1", "s2", "s3")
	s.Labels = map[string]string{discoveryv1.LabelServiceName: pick(w, "web", "db")}
	v6 := w.chance(40)
	s.AddressType = discoveryv1.AddressTypeIPv4
	if v6 {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, name := range []string{"http", "dns"} {
		if w.chance(80) {
			protocol, port := pick(w, protocols...), pick[int32](w, 8080, 8081, 53)
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port})
		}
	}
	for range w.IntN(4) {
		e := discoveryv1.Endpoint{Addresses: []string{w.podAddr(v6).String()}}
		node := w.nodeName()
		e.NodeName = &node
		if w.chance(40) {
			ready, serving, terminating := w.chance(50), w.chance(50), w.chance(50)
			e.Conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
		}
		if w.chance(30) {
			e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: pick(w, "z1", "z2")}}}
		}
		if w.odd(5) {
			e.Addresses = pick(w, nil, []string{"x"}, []string{w.podAddr(!v6).String()})
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	if w.odd(5) {
		s.Labels = nil
	}
	return put(s)
}
