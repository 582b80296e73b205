package service

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// newService is a Service at 10.1.0.10, port http 80, after some changes.
func newService(changes ...func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.1.0.10", ClusterIPs: []string{"10.1.0.10"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for _, change := range changes {
		change(svc)
	}
	return svc
}

// newSlice is an IPv4 slice with port http 8080.
func newSlice(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name,
			Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](8080)}},
		Endpoints:   endpoints,
	}
}

// at is a ready endpoint. What follows the node: "down" not ready,
// "terminating" terminating but serving, "gone" terminating and not serving,
// "node=X" and "zone=X" hints.
func at(addr, node string, with ...string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node}
	for _, w := range with {
		kind, value, _ := strings.Cut(w, "=")
		switch kind {
		case "down":
			e.Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(false)}
		case "terminating":
			e.Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)}
		case "gone":
			e.Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(false), Terminating: ptr.To(true)}
		case "node":
			e.Hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: value}}}
		case "zone":
			e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: value}}}
		default:
			panic(w)
		}
	}
	return e
}

var here = Local{Node: "here", Zone: "z1", Addrs: []netip.Addr{netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("fd00::1")}}

// frontends returns one line for each front end.
func frontends(svc *corev1.Service, local Local, slices ...*discoveryv1.EndpointSlice) (lines, problems []string) {
	s := Parse(svc)
	if s == nil {
		return nil, nil
	}
	var parsed []*Slice
	for _, es := range slices {
		if p := ParseSlice(es); p != nil {
			parsed = append(parsed, p)
		}
	}
	all, problems := s.Frontends(parsed, local)
	for _, f := range all {
		lines = append(lines, line(f))
	}
	return lines, append(problems, s.Problems...)
}

func line(f Frontend) string {
	protocol := map[uint8]string{TCP: "tcp", UDP: "udp", SCTP: "sctp"}[f.Protocol]
	text := fmt.Sprintf("%s %s/%s → %v", f.Class, netip.AddrPortFrom(f.Addr, f.Port), protocol, f.Backends)
	if f.Local {
		text += fmt.Sprintf(" outside → %v", f.LocalBackends)
	}
	if f.Affinity > 0 {
		text += fmt.Sprintf(" affinity %s", f.Affinity)
	}
	if f.SourceRanges != nil {
		text += fmt.Sprintf(" from %v", f.SourceRanges)
	}
	return text + map[Refusal]string{Reject: " else reject", Drop: " else drop"}[f.Refusal]
}

func nodePort(svc *corev1.Service) {
	svc.Spec.Type = corev1.ServiceTypeNodePort
	svc.Spec.Ports[0].NodePort = 30080
}

func loadBalancer(svc *corev1.Service) {
	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}}
}

func externalLocal(svc *corev1.Service) {
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func internalLocal(svc *corev1.Service) {
	svc.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
}

func TestServicesThatAreNotOurs(t *testing.T) {
	for name, change := range map[string]func(*corev1.Service){
		"headless":        func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone },
		"without address": func(s *corev1.Service) { s.Spec.ClusterIP = "" },
		"ExternalName":    func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName },
		"another proxy's": func(s *corev1.Service) {
			s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		},
		"headless by label": func(s *corev1.Service) { s.Labels = map[string]string{"service.kubernetes.io/headless": ""} },
	} {
		if Parse(newService(change)) != nil {
			t.Errorf("%s: is balanced", name)
		}
	}
}

func TestFrontends(t *testing.T) {
	for _, c := range []struct {
		name     string
		svc      *corev1.Service
		local    Local
		slices   []*discoveryv1.EndpointSlice
		want     []string
		problems []string
	}{
		{name: "no endpoints", svc: newService(),
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject"}},
		{name: "sorted, from several slices", svc: newService(), slices: []*discoveryv1.EndpointSlice{
			newSlice("b", at("10.0.0.9", "there")), newSlice("a", at("10.0.0.10", "here"), at("10.0.0.2", "here"))},
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080 10.0.0.9:8080 10.0.0.10:8080] else drop"}},
		{name: "an endpoint that moves between slices counts once, and as it is best", svc: newService(), slices: []*discoveryv1.EndpointSlice{
			newSlice("a", at("10.0.0.2", "here", "down")), newSlice("b", at("10.0.0.2", "here"))},
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080] else drop"}},
		{name: "other names, other protocols and no port number", svc: newService(), slices: []*discoveryv1.EndpointSlice{
			func() *discoveryv1.EndpointSlice {
				es := newSlice("a", at("10.0.0.2", "here"))
				es.Ports = []discoveryv1.EndpointPort{
					{Name: ptr.To("https"), Port: ptr.To[int32](8443)},
					{Name: ptr.To("http"), Port: ptr.To[int32](8081), Protocol: ptr.To(corev1.ProtocolUDP)},
					{Name: ptr.To("http")}, {Name: ptr.To("http"), Port: ptr.To[int32](0)},
				}
				return es
			}()},
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject"}},
		{name: "a target port that differs between endpoints", svc: newService(), slices: []*discoveryv1.EndpointSlice{
			newSlice("a", at("10.0.0.2", "here")),
			func() *discoveryv1.EndpointSlice {
				es := newSlice("b", at("10.0.0.3", "here"))
				es.Ports[0].Port = ptr.To[int32](9090)
				return es
			}()},
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080 10.0.0.3:9090] else drop"}},
		{name: "only the first address; FQDN and foreign families never", svc: newService(), slices: []*discoveryv1.EndpointSlice{
			func() *discoveryv1.EndpointSlice {
				es := newSlice("a", at("10.0.0.2", "here"), at("fd00::2", "here"), at("nonsense", "here"), discoveryv1.Endpoint{})
				es.Endpoints[0].Addresses = []string{"10.0.0.2", "10.0.0.3"}
				return es
			}(),
			func() *discoveryv1.EndpointSlice {
				es := newSlice("b", at("10.0.0.4", "here"))
				es.AddressType = discoveryv1.AddressTypeFQDN
				return es
			}()},
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080] else drop"}},
		{name: "unready endpoints get nothing", svc: newService(),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "here"), at("10.0.0.3", "here", "down"), at("10.0.0.4", "here", "terminating"))},
			want:   []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080] else drop"}},
		{name: "none ready: those that serve while they terminate", svc: newService(),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "here", "gone"), at("10.0.0.3", "here", "down"), at("10.0.0.4", "here", "terminating"))},
			want:   []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.4:8080] else drop"}},
		{name: "slices that another program serves", svc: newService(),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "here")), func() *discoveryv1.EndpointSlice {
				es := newSlice("b", at("10.0.0.3", "here"))
				es.Labels["service.kubernetes.io/headless"] = ""
				return es
			}(), func() *discoveryv1.EndpointSlice {
				es := newSlice("c", at("10.0.0.4", "here"))
				es.Labels["service.kubernetes.io/service-proxy-name"] = "other"
				return es
			}()},
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080] else drop"}},
		{name: "dual stack", svc: newService(nodePort, func(s *corev1.Service) { s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, "fd10::a") }),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "here")), func() *discoveryv1.EndpointSlice {
				es := newSlice("b", at("fd00::2", "here"))
				es.AddressType = discoveryv1.AddressTypeIPv6
				return es
			}()},
			want: []string{
				"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080] else drop",
				"NodePort 172.16.0.1:30080/tcp → [10.0.0.2:8080] else drop",
				"ClusterIP [fd10::a]:80/tcp → [[fd00::2]:8080] else drop",
				"NodePort [fd00::1]:30080/tcp → [[fd00::2]:8080] else drop",
			}},
		{name: "internal policy Local", svc: newService(internalLocal),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "there"), at("10.0.0.3", "here"))},
			want:   []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.3:8080] else drop"}},
		{name: "internal policy Local, nobody here", svc: newService(internalLocal),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "there"))},
			want:   []string{"ClusterIP 10.1.0.10:80/tcp → [] else drop"}},
		{name: "internal policy Local, nobody anywhere", svc: newService(internalLocal),
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject"}},
		{name: "external policy Local", svc: newService(nodePort, externalLocal),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "there"), at("10.0.0.3", "here"), at("10.0.0.4", "here", "terminating"))},
			want: []string{
				"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080 10.0.0.3:8080] else drop",
				"NodePort 172.16.0.1:30080/tcp → [10.0.0.2:8080 10.0.0.3:8080] outside → [10.0.0.3:8080] else drop",
			}},
		{name: "external policy Local, the last one here terminates", svc: newService(nodePort, externalLocal),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "there"), at("10.0.0.4", "here", "terminating"))},
			want: []string{
				"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080] else drop",
				"NodePort 172.16.0.1:30080/tcp → [10.0.0.2:8080] outside → [10.0.0.4:8080] else drop",
			}},
		{name: "hints for nodes", svc: newService(),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "there", "node=there"), at("10.0.0.3", "here", "node=here"), at("10.0.0.4", "there", "down"))},
			want:   []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.3:8080] else drop"}},
		{name: "hints for zones", svc: newService(),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "there", "zone=z1"), at("10.0.0.3", "here", "zone=z2"))},
			want:   []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080] else drop"}},
		{name: "hints that one lacks", svc: newService(),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "there", "zone=z1"), at("10.0.0.3", "here"))},
			want:   []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080 10.0.0.3:8080] else drop"}},
		{name: "hints for others only", svc: newService(),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "there", "zone=z2"), at("10.0.0.3", "here", "zone=z3"))},
			want:   []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.2:8080 10.0.0.3:8080] else drop"}},
		{name: "hints do not bind policy Local", svc: newService(internalLocal),
			slices: []*discoveryv1.EndpointSlice{newSlice("a", at("10.0.0.2", "there", "zone=z1"), at("10.0.0.3", "here", "zone=z2"))},
			want:   []string{"ClusterIP 10.1.0.10:80/tcp → [10.0.0.3:8080] else drop"}},
		{name: "affinity by default for three hours", svc: newService(func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }),
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [] affinity 3h0m0s else reject"}},
		{name: "affinity for so long", svc: newService(func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](10)}}
		}),
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [] affinity 10s else reject"}},
		{name: "load balancer modes", svc: newService(loadBalancer, func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress,
				corev1.LoadBalancerIngress{IP: "198.51.100.2", IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)},
				corev1.LoadBalancerIngress{IP: "198.51.100.3", IPMode: ptr.To(corev1.LoadBalancerIPModeProxy)},
				corev1.LoadBalancerIngress{Hostname: "lb.example.org"})
		}),
			want: []string{
				"ClusterIP 10.1.0.10:80/tcp → [] else reject",
				"LoadBalancer 198.51.100.1:80/tcp → [] else reject",
				"LoadBalancer 198.51.100.2:80/tcp → [] else reject",
			}},
		{name: "source ranges", svc: newService(loadBalancer, nodePort, loadBalancer, func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{" 203.0.113.0/24", "2001:db8::/32", "172.16.0.0/16"}
		}),
			want: []string{
				"ClusterIP 10.1.0.10:80/tcp → [] else reject",
				"NodePort 172.16.0.1:30080/tcp → [] else reject",
				"LoadBalancer 198.51.100.1:80/tcp → [] from [203.0.113.0/24 172.16.0.0/16 198.51.100.1/32] else reject",
			}},
		{name: "source ranges that let everybody in", svc: newService(loadBalancer, func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24", "0.0.0.0/0"}
		}),
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject", "LoadBalancer 198.51.100.1:80/tcp → [] else reject"}},
		{name: "source ranges that make no sense let nobody in", svc: newService(loadBalancer, func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"everybody"}
		}),
			want:     []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject", "LoadBalancer 198.51.100.1:80/tcp → [] from [] else reject"},
			problems: []string{`loadBalancerSourceRanges: "everybody" is not a prefix; nobody is let in by it`}},
		{name: "external IPs outside the ranges", svc: newService(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"198.51.100.7", "203.0.113.7"} }),
			local:    Local{Node: "here", ExternalIPs: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}},
			want:     []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject", "ExternalIP 203.0.113.7:80/tcp → [] else reject"},
			problems: []string{"externalIPs 198.51.100.7: not in a range that is allowed for external IPs; remove them or allow the range (twill agent --external-ips)"}},
		{name: "addresses of a family that the Service lacks", svc: newService(func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalIPs = corev1.ServiceTypeLoadBalancer, []string{"2001:db8:e::60"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.2"}, {IP: "2001:db8:e::61"}}
		}),
			local: Local{Node: "here", ExternalIPs: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}},
			slices: []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
				es := newSlice("b", at("fd00::2", "here"))
				es.AddressType = discoveryv1.AddressTypeIPv6
				return es
			}()},
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject", "LoadBalancer 198.51.100.2:80/tcp → [] else reject"},
			problems: []string{
				"externalIPs: the service has no cluster IP of the family of 2001:db8:e::60; add the family to ipFamilies, or remove the address",
				"status.loadBalancer.ingress: the service has no cluster IP of the family of 2001:db8:e::61; add the family to ipFamilies, or remove the address",
			}},
		{name: "leading zeros are decimal", svc: newService(func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"010.001.000.010"} }),
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject"}},
		{name: "the unspecified address is nobody's", svc: newService(func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "0.0.0.0"}}
		}),
			want:     []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject"},
			problems: []string{"status.loadBalancer.ingress: 0.0.0.0 is not the address of a host"}},
		{name: "what is not done is said", svc: newService(func(s *corev1.Service) {
			s.Spec.ClusterIPs = []string{"10.1.0.10", "x"}
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "q", Protocol: "QUIC", Port: 443})
			s.Spec.SessionAffinity = "Cookie"
			s.Spec.ExternalTrafficPolicy = "Far"
			s.Spec.InternalTrafficPolicy = ptr.To[corev1.ServiceInternalTrafficPolicy]("Far")
		}),
			want: []string{"ClusterIP 10.1.0.10:80/tcp → [] else reject"},
			problems: []string{
				`clusterIPs: "x" is not an address`,
				`internalTrafficPolicy "Far" is unknown; Cluster is done`,
				`externalTrafficPolicy "Far" is unknown; Cluster is done`,
				`sessionAffinity "Cookie" is unknown; None is done`,
				`port "q" (443/QUIC, node port 0) is not a port that can be balanced`,
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.local.Node == "" {
				c.local = here
			}
			got, problems := frontends(c.svc, c.local, c.slices...)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("front ends (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.problems, problems); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheOrderOfSlicesDoesNotMatter(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		var all []*discoveryv1.EndpointSlice
		for i := range 1 + r.IntN(4) {
			es := newSlice(fmt.Sprint("s", i))
			for range r.IntN(5) {
				conditions := [][]string{nil, {"down"}, {"terminating"}, {"gone"}, {"zone=z1"}, {"zone=z2"}, {"node=here"}, {"node=there"}}
				// Few addresses, so that many are in several slices.
				es.Endpoints = append(es.Endpoints, at(fmt.Sprintf("10.0.0.%d", r.IntN(6)), []string{"here", "there"}[r.IntN(2)], conditions[r.IntN(len(conditions))]...))
			}
			all = append(all, es)
		}
		svc := newService(nodePort, externalLocal)
		want, _ := frontends(svc, here, all...)
		for range 5 {
			r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			for _, es := range all {
				r.Shuffle(len(es.Endpoints), func(i, j int) { es.Endpoints[i], es.Endpoints[j] = es.Endpoints[j], es.Endpoints[i] })
			}
			got, _ := frontends(svc, here, all...)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("seed %d: shuffled slices give other front ends (-first +now):\n%s", seed, diff)
			}
		}
	}
}

func TestParseKeepsTheAge(t *testing.T) {
	born := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := Parse(newService(func(s *corev1.Service) { s.CreationTimestamp = metav1.NewTime(born) }))
	if !s.Created.Equal(born) {
		t.Errorf("created %s, want %s", s.Created, born)
	}
	if !slices.Equal(s.ClusterIPs, []netip.Addr{netip.MustParseAddr("10.1.0.10")}) {
		t.Errorf("cluster IPs %v", s.ClusterIPs)
	}
}
