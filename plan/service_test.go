package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/twill-net/twill/api"
)

var nodeAddrs = []netip.Addr{netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("fd00::1")}

func newServices() *servicePlanner {
	s := newServicePlanner(New(), "here")
	s.setNode("z1", 2, nodeAddrs)
	return s
}

// planned is everything that services put into the plan, as text.
func planned(s *servicePlanner) string {
	s.flush()
	var b strings.Builder
	b.WriteString(s.plan.String())
	var udp []string
	for f, backends := range s.plan.UDPFrontends.All() {
		udp = append(udp, fmt.Sprintf("udp %s:%d → %v\n", f.Addr, f.Port, backends))
	}
	slices.Sort(udp)
	return b.String() + strings.Join(udp, "") + fmt.Sprint(s.problems())
}

// numbered is the i-th Service; its looks depend on a random source.
func numbered(i int, r *rand.Rand) *corev1.Service {
	ip := fmt.Sprintf("10.1.%d.%d", i/250, 1+i%250)
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s%d", i),
			CreationTimestamp: metav1.NewTime(time.Unix(int64(i%3), 0))},
		Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip, fmt.Sprintf("fd10::%x", i+1)},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}},
	}
	if r == nil {
		return svc
	}
	if r.IntN(2) == 0 {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	if r.IntN(2) == 0 {
		svc.Spec.Ports[0].NodePort = int32(30000 + r.IntN(3)) // they will quarrel
	}
	if r.IntN(2) == 0 {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53})
	}
	if r.IntN(2) == 0 {
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		svc.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}
	if r.IntN(2) == 0 {
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24", "203.0.113.128/25"}[:r.IntN(3)]
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: fmt.Sprintf("198.51.100.%d", r.IntN(3))}}
	}
	return svc
}

// sliceOf is a slice of the i-th Service with n endpoints from a certain one on.
func sliceOf(i int, name string, first, n int) *discoveryv1.EndpointSlice {
	es := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s%d-%s", i, name),
			Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("s%d", i)}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{
			{Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](8080)},
			{Name: ptr.To("dns"), Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To[int32](5353)},
		},
	}
	for j := first; j < first+n; j++ {
		node := []string{"here", "there"}[j%2]
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 20+i/250, i%250, j)}, NodeName: &node})
	}
	return es
}

func TestServicesEndUpTheSameInAnyOrder(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		var services []*corev1.Service
		var endpointSlices []*discoveryv1.EndpointSlice
		for i := range 6 {
			services = append(services, numbered(i, r))
			for _, name := range []string{"a", "b"} {
				endpointSlices = append(endpointSlices, sliceOf(i, name, r.IntN(5), r.IntN(4)))
			}
		}
		pod := func(s *servicePlanner) {
			s.setLocalPod(api.Key{Namespace: "default", Name: "p"}, api.Key{Namespace: "default", Name: "p"}, []netip.Addr{netip.MustParseAddr("10.20.0.2")},
				[]HostPort{{Protocol: 6, HostPort: 30001, Port: 80}, {Protocol: 17, HostPort: 53, Port: 53}})
		}
		plain := newServices()
		for _, svc := range services {
			plain.setService(svc)
		}
		for _, es := range endpointSlices {
			plain.setEndpointSlice(es)
		}
		pod(plain)
		want := planned(plain)

		// Left to another, and taken back.
		none := newServices()
		none.setOff(true)
		pod(none)
		plain.setOff(true)
		if diff := cmp.Diff(planned(none), planned(plain)); diff != "" {
			t.Fatalf("seed %d, services are another's (-none +left):\n%s", seed, diff)
		}
		plain.setOff(false)
		if diff := cmp.Diff(want, planned(plain)); diff != "" {
			t.Fatalf("seed %d, services are taken back (-before +after):\n%s", seed, diff)
		}

		// The same, in another order, with detours on the way.
		detoured := newServicePlanner(New(), "here")
		var events []func()
		for i, svc := range services {
			events = append(events, func() {
				detoured.setService(numbered(i, r))
				detoured.flush()
				if r.IntN(2) == 0 {
					detoured.deleteService(api.KeyOf(svc))
					detoured.flush()
				}
				detoured.setService(svc)
			})
		}
		for _, es := range endpointSlices {
			events = append(events, func() {
				moved := es.DeepCopy()
				moved.Labels[discoveryv1.LabelServiceName] = fmt.Sprintf("s%d", r.IntN(6))
				detoured.setEndpointSlice(moved)
				if r.IntN(2) == 0 {
					detoured.flush()
					detoured.deleteEndpointSlice(api.KeyOf(es))
				}
				detoured.flush()
				detoured.setEndpointSlice(es)
			})
		}
		events = append(events, func() { pod(detoured) }, func() { detoured.setNode("z1", 2, nodeAddrs) })
		r.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
		for _, event := range events {
			event()
			if r.IntN(3) == 0 {
				detoured.flush()
			}
		}
		if diff := cmp.Diff(want, planned(detoured)); diff != "" {
			t.Fatalf("seed %d (-plain +detoured):\n%s", seed, diff)
		}

		// When all is gone, nothing is left.
		for _, svc := range services {
			detoured.deleteService(api.KeyOf(svc))
		}
		for _, es := range endpointSlices {
			detoured.deleteEndpointSlice(api.KeyOf(es))
		}
		detoured.deleteLocalPod(api.Key{Namespace: "default", Name: "p"})
		if diff := cmp.Diff(planned(newServices()), planned(detoured)); diff != "" {
			t.Fatalf("seed %d, after all is deleted (-empty +left):\n%s", seed, diff)
		}
		if n := len(detoured.placed) + len(detoured.held) + len(detoured.rivals) + len(detoured.lost) + len(detoured.balancers) +
			len(detoured.clusterIPs) + len(detoured.slices) + len(detoured.sliceOf) + len(detoured.pods) + len(detoured.faults); n != 0 {
			t.Fatalf("seed %d: the planner still remembers %d things", seed, n)
		}
	}
}

func TestTheOlderServiceKeepsAnAddress(t *testing.T) {
	s := newServices()
	shared := func(i int) *corev1.Service {
		svc := numbered(i, nil)
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}}
		return svc
	}
	owner := func() string {
		s.flush()
		e, _ := s.plan.Elements.Get(ElementKey{"svc-none4", KeyOf(netip.MustParseAddr("198.51.100.1"), uint8(6), uint16(80))})
		return e.Comment
	}
	s.setService(shared(2))
	if got := owner(); got != "default/s2:http" {
		t.Errorf("alone: %q has the address", got)
	}
	s.setService(shared(0))
	if got := owner(); got != "default/s0:http" {
		t.Errorf("both: %q has the address, want the older", got)
	}
	want := []Problem{{"ServiceNotProgrammed", "default/s2", "198.51.100.1:80/tcp is taken by default/s0"}}
	if diff := cmp.Diff(want, s.problems()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	s.deleteService(api.Key{Namespace: "default", Name: "s0"})
	if got := owner(); got != "default/s2:http" || len(s.problems()) != 0 {
		t.Errorf("after the older is gone: %q has the address; problems %v", got, s.problems())
	}
}

func TestExternalIPsNeedAnAllowedRange(t *testing.T) {
	s := newServices()
	svc := numbered(0, nil)
	svc.Spec.ExternalIPs = []string{"203.0.113.7"}
	s.setService(svc)
	row := ElementKey{"svc-none4", KeyOf(netip.MustParseAddr("203.0.113.7"), uint8(6), uint16(80))}
	s.flush()
	if _, ok := s.plan.Elements.Get(row); ok || len(s.problems()) != 1 {
		t.Errorf("no range: front end %v, problems %v", ok, s.problems())
	}
	s.setExternalIPRanges([]netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")})
	s.flush()
	if _, ok := s.plan.Elements.Get(row); !ok || len(s.problems()) != 0 {
		t.Errorf("allowed: front end %v, problems %v", ok, s.problems())
	}
}

func TestBackendIDsSurviveChangesOfTheList(t *testing.T) {
	all := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80"), netip.MustParseAddrPort("10.0.0.3:80")}
	full, part := backendIDs(all, true), backendIDs(all[1:], true)
	if !slices.Equal(full[1:], part) {
		t.Errorf("identifiers %x became %x", full[1:], part)
	}
}

func TestAnAddressOfTwoAttachmentsStaysUntilBothAreGone(t *testing.T) {
	s := newServices()
	a := netip.MustParseAddr("10.244.0.2")
	before, after := api.Key{Name: "before"}, api.Key{Name: "after"}
	s.setLocalPod(before, before, []netip.Addr{a}, nil)
	s.setLocalPod(after, after, []netip.Addr{a}, nil)
	s.deleteLocalPod(before)
	s.flush()
	for _, k := range []ElementKey{{"local-pods4", KeyOf(a)}, {"hairpin4", KeyOf(a, a)}} {
		if _, ok := s.plan.Elements.Get(k); !ok {
			t.Errorf("%s lost the address", k.Set)
		}
	}
	s.deleteLocalPod(after)
	if got, want := planned(s), planned(newServices()); got != want {
		t.Error("something is left")
	}
}

// TestWhoLostIsToldTheWinnersName: what is adopted has no name at first.
func TestWhoLostIsToldTheWinnersName(t *testing.T) {
	s := newServices()
	pod := func(device, name string) {
		s.setLocalPod(api.Key{Name: device}, api.Key{Namespace: "default", Name: name}, []netip.Addr{netip.MustParseAddr("10.244.0.2")},
			[]HostPort{{Protocol: 6, HostPort: 8000, Port: 80}})
		s.flush()
	}
	pod("tw-a", "")
	pod("tw-b", "b")
	pod("tw-a", "a")
	if p := s.problems(); len(p) != 1 || !strings.Contains(p[0].Detail, "taken by host ports of pod default/a") {
		t.Errorf("problems %v", p)
	}
}

func TestHostPortsOnLoopbackOfIPv6AreRefused(t *testing.T) {
	s := newServices()
	key := api.Key{Namespace: "default", Name: "p"}
	s.setLocalPod(key, key, []netip.Addr{netip.MustParseAddr("fd00::2")},
		hostPorts([]api.WorkloadEndpointPort{{Port: 80, HostPort: 8000, HostIP: "::1"}, {Port: 81}}))
	s.flush()
	if p := s.problems(); len(p) != 1 || !strings.Contains(p[0].Detail, "host port 8000 on ::1") {
		t.Errorf("problems %v", p)
	}
}

// TestAffinityAddsOneMap: a Service port with affinity has a map of its own, which
// outlives a change of the timeout and of the endpoints. Other Services have none.
func TestAffinityAddsOneMap(t *testing.T) {
	s := newServices()
	put := func(i int, timeout int32, endpoints int) (sets, chains []string) {
		svc := numbered(i, nil)
		if timeout > 0 {
			svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
		}
		svc.Spec.Ports[0].NodePort = 30080
		s.setService(svc)
		s.setEndpointSlice(sliceOf(i, "a", 0, endpoints))
		s.flush()
		sets, chains = slices.Sorted(s.plan.Sets.Dirty()), slices.Sorted(s.plan.Chains.Dirty())
		for _, name := range sets {
			s.plan.Sets.MarkClean(name)
		}
		for _, name := range chains {
			s.plan.Chains.MarkClean(name)
		}
		return sets, chains
	}
	put(1, 0, 2)
	put(2, 10, 2)
	const hash = "e0d5388afb5d1758" // of default/s0:http/tcp
	for _, c := range []struct {
		name                 string
		service, endpoints   int
		timeout              int32
		wantSets, wantChains []string
	}{
		{"a Service without affinity", 3, 2, 0, nil, nil},
		{"one with affinity", 0, 2, 10, []string{"affinity4-" + hash}, []string{"affine4-" + hash + "-2-10s"}},
		{"another timeout", 0, 2, 20, nil, []string{"affine4-" + hash + "-2-10s", "affine4-" + hash + "-2-20s"}},
		{"another endpoint", 0, 3, 20, nil, []string{"affine4-" + hash + "-2-20s", "affine4-" + hash + "-3-20s", "draw4-3"}},
		{"affinity ends", 0, 2, 0, []string{"affinity4-" + hash}, []string{"affine4-" + hash + "-3-20s", "draw4-3"}},
	} {
		gotSets, gotChains := put(c.service, c.timeout, c.endpoints)
		if diff := cmp.Diff(c.wantSets, gotSets); diff != "" {
			t.Errorf("%s: sets that change (-want +got):\n%s", c.name, diff)
		}
		if diff := cmp.Diff(c.wantChains, gotChains); diff != "" {
			t.Errorf("%s: chains that change (-want +got):\n%s", c.name, diff)
		}
	}
}

// loaded has services with so many endpoints each, planned and clean.
func loaded(services, endpoints int) *servicePlanner {
	s := newServices()
	for i := range services {
		s.setService(numbered(i, nil))
		for j := 0; j < endpoints; j += 100 {
			s.setEndpointSlice(sliceOf(i, fmt.Sprint(j/100), j, min(100, endpoints-j)))
		}
	}
	s.flush()
	for k := range s.plan.Elements.Dirty() {
		s.plan.Elements.MarkClean(k)
	}
	return s
}

func benchmarkLoad(b *testing.B, services, endpoints int) {
	b.ReportAllocs()
	for b.Loop() {
		loaded(services, endpoints)
	}
}

func benchmarkChange(b *testing.B, services, endpoints int) {
	s := loaded(services, endpoints)
	states := []*discoveryv1.EndpointSlice{sliceOf(0, "0", 0, min(100, endpoints)-1), sliceOf(0, "0", 0, min(100, endpoints))}
	b.ReportAllocs()
	rows := 0
	for i := 0; b.Loop(); i++ {
		s.setEndpointSlice(states[i%2])
		s.flush()
		rows += s.plan.Elements.DirtyLen()
		for k := range s.plan.Elements.Dirty() {
			s.plan.Elements.MarkClean(k)
		}
	}
	b.ReportMetric(float64(rows)/float64(b.N), "rows/op")
}

func BenchmarkServices10000x2Load(b *testing.B)    { benchmarkLoad(b, 10_000, 2) }
func BenchmarkServices10000x2Change(b *testing.B)  { benchmarkChange(b, 10_000, 2) }
func BenchmarkServices1000x250Load(b *testing.B)   { benchmarkLoad(b, 1_000, 250) }
func BenchmarkServices1000x250Change(b *testing.B) { benchmarkChange(b, 1_000, 250) }

// TestHealthChecksCountWhatIsReadyHere: what a load balancer is told follows the
// node's own ready endpoints, of each of the Service's families by itself.
func TestHealthChecksCountWhatIsReadyHere(t *testing.T) {
	s := newServices()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.1.0.10", ClusterIPs: []string{"10.1.0.10", "fd10::a"},
		ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
		HealthCheckNodePort:   32000, Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "https", Port: 443}},
	}}
	endpoint := func(addr, node string, ready bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	}
	slice := func(family discoveryv1.AddressType, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-" + string(family), Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: family, Endpoints: endpoints,
			Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}, {Name: ptr.To("https"), Port: ptr.To[int32](8443)}},
		}
	}
	expect := func(want map[string]int) {
		t.Helper()
		s.flush()
		got := map[string]int{}
		for at, check := range s.plan.HealthChecks.All() {
			got[at.String()] = check.LocalEndpoints
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("endpoints by address (-want +got):\n%s", diff)
		}
	}
	const four, six = "172.16.0.1:32000", "[fd00::1]:32000"
	s.setService(svc)
	expect(map[string]int{four: 0, six: 0})
	s.setEndpointSlice(slice("IPv4", endpoint("10.244.0.1", "here", true), endpoint("10.244.0.2", "here", false), endpoint("10.244.1.1", "there", true)))
	expect(map[string]int{four: 1, six: 0})
	s.setEndpointSlice(slice("IPv6", endpoint("fd00:244::1", "here", true), endpoint("fd00:244::2", "here", true)))
	expect(map[string]int{four: 1, six: 2})
	s.deleteEndpointSlice(api.Key{Namespace: "default", Name: "web-IPv4"})
	expect(map[string]int{four: 0, six: 2})
	s.setNode("z1", 2, append(nodeAddrs[:2:2], netip.MustParseAddr("172.16.0.2")))
	expect(map[string]int{four: 0, "172.16.0.2:32000": 0, six: 2})
	s.setNode("z1", 2, nodeAddrs)
	svc.Spec.ClusterIPs = svc.Spec.ClusterIPs[:1]
	s.setService(svc)
	expect(map[string]int{four: 0})
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	s.setService(svc)
	expect(nil)
}
