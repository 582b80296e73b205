package dataplane

import (
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

var exchanges = flag.Int("exchanges", 25, "how often the test of transitions exchanges what holds")

// Ports of the pod that is under policy, and of the Services that lead to it.
const (
	allowedPort = 7070 // that every policy of the test allows
	deniedPort  = 7272 // that none does
	servicePort = 80
)

// exchange is a change that is made and taken back, again and again. Packets to
// denied may never arrive where they are counted. Connections to allowed must
// all succeed, if the change leaves them allowed.
type exchange struct {
	name            string
	prepare, change func(x *site, on bool)
	denied, allowed target
}

// target is where packets go and, for denied ones, who counts those that arrive.
type target struct {
	addrs   [2]string
	port    int
	arrives func(x *site) *testnet.NS
}

var (
	toServer   = target{serverAddrs, deniedPort, func(x *site) *testnet.NS { return x.server }}
	throughIP  = target{clusterIPs, servicePort, func(x *site) *testnet.NS { return x.outside }}
	serverPort = target{addrs: serverAddrs, port: allowedPort}
	service    = target{addrs: clusterIPs, port: servicePort}
)

var exchangeKinds = []exchange{
	{name: "nothing changes", denied: toServer, allowed: serverPort,
		prepare: func(x *site, _ bool) { x.isolate() },
		change:  func(x *site, on bool) { x.planner.Put(namespace(map[string]string{"seen": fmt.Sprint(on)})) }},
	{name: "another policy selects the receiver", denied: toServer, allowed: serverPort,
		prepare: func(x *site, _ bool) {
			x.planner.Put(networkPolicy("a", "role=a", ingress(from("app=client"), allowedPort)))
			x.planner.Put(networkPolicy("b", "role=b", ingress(from("app=client"), 7000, 7100)))
		},
		change: func(x *site, on bool) { x.setServer(map[string]string{"role": role(on)}) }},
	{name: "another egress policy selects the sender", denied: toServer, allowed: serverPort,
		prepare: func(x *site, _ bool) {
			x.planner.Put(networkPolicy("a", "role=a", egress(to("app=server"), allowedPort)))
			x.planner.Put(networkPolicy("b", "role=b", egress(to("app=server"), 7000, 7100)))
		},
		change: func(x *site, on bool) { x.setClient(map[string]string{"role": role(on)}) }},
	{name: "a second policy comes and goes", denied: toServer, allowed: serverPort,
		prepare: func(x *site, _ bool) { x.isolate() },
		change: func(x *site, on bool) {
			if on {
				x.planner.Put(networkPolicy("b", "app=server,role=", ingress(from("app=client"), 7000, 7100)))
			} else {
				x.planner.Delete(api.NetworkPolicyKind, api.Key{Namespace: "default", Name: "b"})
			}
		}},
	{name: "isolation comes and goes", allowed: serverPort,
		change: func(x *site, on bool) {
			if on {
				x.isolate()
			} else {
				x.planner.Delete(api.NetworkPolicyKind, api.Key{Namespace: "default", Name: "a"})
			}
		}},
	{name: "classes of ports", denied: toServer, allowed: serverPort,
		change: func(x *site, on bool) {
			if on {
				x.planner.Put(networkPolicy("a", "app=server", ingress(from("app=client"), allowedPort, 7071),
					ingress(from("app=other"), deniedPort)))
			} else {
				x.planner.Put(networkPolicy("a", "app=server", ingress(from("app=client"), allowedPort),
					ingress(from("app=other"), 7071, 7300)))
			}
		}},
	{name: "another rule allows the same", denied: toServer, allowed: serverPort,
		change: func(x *site, on bool) {
			if on {
				x.planner.Put(networkPolicy("a", "app=server", ingress(from("app=client"), allowedPort)))
			} else {
				x.planner.Put(networkPolicy("a", "app=server", ingress(from("app"), 7000, 7100)))
			}
		}},
	{name: "a set passes from one port to another", denied: toServer,
		// Port 7272 is for pods of which the client is none; when the set is used
		// for 7070, it gains the client.
		change: func(x *site, on bool) {
			both, port := []string{"app=other"}, deniedPort
			if on {
				both, port = append(both, "app=client"), allowedPort
			}
			x.planner.Put(networkPolicy("a", "app=server", ingress(from(both...), port)))
		}},
	{name: "a Service has one endpoint or none", denied: throughIP,
		change: func(x *site, on bool) { x.setEndpoints(on, false) }},
	{name: "a Service has one endpoint or two", allowed: service,
		prepare: func(x *site, _ bool) { x.setEndpoints(true, false) },
		change:  func(x *site, on bool) { x.setEndpoints(true, on) }},
}

// TestNothingPassesInTransitions exchanges what holds for two pods, thousands of
// times, while packets are on their way. Each packet must be judged by what
// held before or by what holds after: of what both deny nothing arrives, and
// what both allow is not lost.
func TestNothingPassesInTransitions(t *testing.T) {
	controlLost := 0
	for i, kind := range exchangeKinds {
		t.Run(kind.name, func(t *testing.T) {
			x := newSite(t)
			if kind.prepare != nil {
				kind.prepare(x, false)
			}
			kind.change(x, false)
			x.apply()
			var f *flood
			if kind.denied.arrives != nil {
				f = startFlood(t, x.client, kind.denied.arrives(x), kind.denied)
			}
			p := startProbes(t, x.client, kind.allowed)
			for n := range 2 * *exchanges {
				kind.change(x, n%2 == 0)
				x.apply()
				if f != nil {
					meets(t, &f.sent, 20)
				}
				if p != nil {
					meets(t, &p.tried, 1)
				}
			}
			sent, arrived := f.stop()
			tried, lost := p.stop()
			t.Logf("%d changes: %d denied packets sent, %d arrived; %d allowed connections tried, %d lost",
				2**exchanges, sent, arrived, tried, lost)
			if arrived != 0 {
				t.Errorf("%d of %d packets arrived that were denied before and after", arrived, sent)
			}
			if f != nil && sent == 0 || p != nil && tried == 0 {
				t.Error("nothing was sent: the test shows nothing")
			}
			if i == 0 {
				controlLost = lost
			} else if lost > controlLost {
				t.Errorf("%d of %d connections were lost that were allowed before and after; %d while nothing changed", lost, tried, controlLost)
			}
		})
	}
}

var (
	clientAddrs = [2]string{"10.244.1.2", "fd00:1::2"}
	serverAddrs = [2]string{"10.244.2.2", "fd00:2::2"}
	clusterIPs  = [2]string{"10.1.0.10", "fd10::a"}
)

// site is a node with two pods, and the way out of it.
type site struct {
	t                             *testing.T
	node, client, server, outside *testnet.NS
	planner                       *plan.Planner
	kernel                        *nft.Kernel
}

func newSite(t *testing.T) *site {
	x := &site{t: t, node: testnet.New(t), client: testnet.New(t), server: testnet.New(t), outside: testnet.New(t), planner: plan.NewPlanner("here")}
	x.node.Sysctl(t, "ipv4/ip_forward", "1")
	x.node.Sysctl(t, "ipv6/conf/all/forwarding", "1")
	for i, end := range []struct {
		ns    *testnet.NS
		link  string
		addrs [2]string
	}{{x.client, "tw-client", clientAddrs}, {x.server, "tw-server", serverAddrs}, {x.outside, "up0", [2]string{"192.168.7.2", "fd00:7::2"}}} {
		testnet.Pair(t, x.node, end.ns, end.link, "eth0")
		for f, any := range []string{"0.0.0.0/0", "::/0"} {
			theirs := netip.MustParseAddr(end.addrs[f])
			ours := theirs.Prev().String()
			bits := [2]int{24, 64}[f]
			x.node.Address(t, end.link, fmt.Sprintf("%s/%d", ours, bits))
			end.ns.Address(t, "eth0", fmt.Sprintf("%s/%d", theirs, bits))
			end.ns.Route(t, any, ours)
			if i == 2 {
				x.node.Route(t, any, theirs.String())
				end.ns.Address(t, "lo", fmt.Sprintf("%s/%d", clusterIPs[f], theirs.BitLen()))
			}
		}
	}
	x.planner.Put(namespace(nil))
	x.setClient(nil)
	x.setServer(nil)
	x.node.Do(func() {
		var err error
		if x.kernel, err = nft.Open(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { x.kernel.Close() })
	serve(t, x.server, allowedPort, allowedPort+1)
	x.apply()
	return x
}

func (x *site) apply() {
	x.t.Helper()
	p := x.planner.Flush()
	if _, err := x.kernel.Apply(p); err != nil {
		x.t.Fatal(err)
	}
}

func (x *site) setClient(labels map[string]string) { x.setPod("client", clientAddrs, labels) }
func (x *site) setServer(labels map[string]string) { x.setPod("server", serverAddrs, labels) }

func (x *site) setPod(name string, addrs [2]string, labels map[string]string) {
	l := plan.Local{Pod: api.Key{Namespace: "default", Name: name}, HostInterface: "tw-" + name, Labels: map[string]string{"app": name}}
	for k, v := range labels {
		l.Labels[k] = v
	}
	for _, a := range addrs {
		l.Addrs = append(l.Addrs, netip.MustParseAddr(a))
	}
	x.planner.SetLocal(l)
}

// isolate admits the client to the allowed port of the server, and nothing else.
func (x *site) isolate() {
	x.planner.Put(networkPolicy("a", "app=server", ingress(from("app=client"), allowedPort)))
}

// setEndpoints gives the Service none, one or two endpoints: two ports of the
// server.
func (x *site) setEndpoints(first, second bool) {
	ports := []corev1.ServicePort{{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: servicePort}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: servicePort}}
	x.planner.Put(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: clusterIPs[0], ClusterIPs: clusterIPs[:], Ports: ports},
	})
	for f, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		for i, present := range []bool{first, second} {
			es := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web-%s-%d", family, i),
					Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
				AddressType: family,
				Ports: []discoveryv1.EndpointPort{
					{Name: ptr.To("tcp"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(allowedPort + i))},
					{Name: ptr.To("udp"), Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To(int32(allowedPort + i))},
				},
			}
			if present {
				es.Endpoints = []discoveryv1.Endpoint{{Addresses: serverAddrs[f : f+1], NodeName: ptr.To("here")}}
			}
			x.planner.Put(es)
		}
	}
}

func role(on bool) string {
	if on {
		return "b"
	}
	return "a"
}

func namespace(labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: labels}}
}

// rule is a rule of a policy in either direction.
type rule struct {
	direction networkingv1.PolicyType
	peers     []networkingv1.NetworkPolicyPeer
	ports     []networkingv1.NetworkPolicyPort
}

func ingress(peers []networkingv1.NetworkPolicyPeer, ports ...int) rule {
	return rule{networkingv1.PolicyTypeIngress, peers, portRange(ports)}
}

func egress(peers []networkingv1.NetworkPolicyPeer, ports ...int) rule {
	return rule{networkingv1.PolicyTypeEgress, peers, portRange(ports)}
}

// portRange is one port, or all from the first to the second, over TCP and UDP.
func portRange(ports []int) (out []networkingv1.NetworkPolicyPort) {
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		p := networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: ptr.To(intstr.FromInt(ports[0]))}
		if len(ports) > 1 {
			p.EndPort = ptr.To(int32(ports[1]))
		}
		out = append(out, p)
	}
	return out
}

func from(selectors ...string) (out []networkingv1.NetworkPolicyPeer) {
	for _, text := range selectors {
		out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: selector(text)})
	}
	return out
}

func to(selectors ...string) []networkingv1.NetworkPolicyPeer { return from(selectors...) }

// selector parses "app=client,role" as kubectl does.
func selector(text string) *metav1.LabelSelector {
	s, err := metav1.ParseToLabelSelector(text)
	if err != nil {
		panic(err)
	}
	return s
}

func networkPolicy(name, pods string, rules ...rule) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	np.Spec.PodSelector = *selector(pods)
	for _, r := range rules {
		np.Spec.PolicyTypes = []networkingv1.PolicyType{r.direction}
		if r.direction == networkingv1.PolicyTypeIngress {
			np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: r.peers, Ports: r.ports})
		} else {
			np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: r.peers, Ports: r.ports})
		}
	}
	return np
}
