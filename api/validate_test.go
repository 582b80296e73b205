package api

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func service(change func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.1.0.1", ClusterIPs: []string{"10.1.0.1", "fd00::1"},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	Default(s)
	change(&s.Spec)
	return s
}

func TestValidateUpdate(t *testing.T) {
	same := func(*corev1.ServiceSpec) {}
	pool := func(cidr string, size int) *IPPool {
		return &IPPool{ObjectMeta: metav1.ObjectMeta{Name: "pods"}, Spec: IPPoolSpec{CIDR: cidr, BlockSize: size}}
	}
	block := func(cidr, node string) *IPAMBlock {
		return &IPAMBlock{Spec: IPAMBlockSpec{CIDR: cidr, Affinity: AffinityOf(node)}}
	}
	for name, tt := range map[string]struct {
		new, old Object
		want     string
	}{
		"nothing":            {service(same), service(same), "[]"},
		"ports":              {service(func(s *corev1.ServiceSpec) { s.Ports[0].Port = 81 }), service(same), "[]"},
		"clusterIP":          {service(func(s *corev1.ServiceSpec) { s.ClusterIP = "10.1.0.2" }), service(same), `[spec.clusterIP: Invalid value: "10.1.0.2": field is immutable]`},
		"no clusterIP":       {service(func(s *corev1.ServiceSpec) { s.ClusterIP = "" }), service(same), `[spec.clusterIP: Invalid value: "": field is immutable]`},
		"second clusterIP":   {service(func(s *corev1.ServiceSpec) { s.ClusterIPs = []string{"10.1.0.1", "fd00::2"} }), service(same), `[spec.clusterIPs[1]: Invalid value: "fd00::2": field is immutable]`},
		"fewer clusterIPs":   {service(func(s *corev1.ServiceSpec) { s.ClusterIPs = s.ClusterIPs[:1] }), service(same), "[]"},
		"first family":       {service(func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }), service(same), `[spec.ipFamilies[0]: Invalid value: "IPv6": field is immutable]`},
		"to ExternalName":    {service(func(s *corev1.ServiceSpec) { s.Type, s.ClusterIP, s.ClusterIPs = "ExternalName", "", nil }), service(same), "[]"},
		"clusterIP is given": {service(same), service(func(s *corev1.ServiceSpec) { s.ClusterIP, s.ClusterIPs = "", nil }), "[]"},
		"pool's nodes": {&IPPool{Spec: IPPoolSpec{CIDR: "10.0.0.0/16", NodeSelector: "has(a)"}},
			&IPPool{Spec: IPPoolSpec{CIDR: "10.0.0.0/16"}}, "[]"},
		"pool's cidr":      {pool("10.0.0.0/16", 26), pool("10.1.0.0/16", 26), `[spec.cidr: Invalid value: "10.0.0.0/16": field is immutable]`},
		"pool's blocks":    {pool("10.0.0.0/16", 26), pool("10.0.0.0/16", 24), `[spec.blockSize: Invalid value: 26: field is immutable]`},
		"block's owner":    {block("10.0.0.0/26", "a"), block("10.0.0.0/26", "b"), `[spec.affinity: Invalid value: "host:a": field is immutable]`},
		"slice's family":   {&discoveryv1.EndpointSlice{AddressType: "IPv6"}, &discoveryv1.EndpointSlice{AddressType: "IPv4"}, `[addressType: Invalid value: "IPv6": field is immutable]`},
		"podCIDR":          {&corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "a"}}, &corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "b"}}, `[spec.podCIDR: Invalid value: "a": field is immutable]`},
		"podCIDR is given": {&corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "a"}}, &corev1.Node{}, "[]"},
		"another object":   {pool("10.0.0.0/16", 26), &IPPool{ObjectMeta: metav1.ObjectMeta{Name: "x", UID: "1"}, Spec: IPPoolSpec{CIDR: "10.0.0.0/16", BlockSize: 26}}, `[metadata.name: Invalid value: "pods": field is immutable]`},
		"another kind":     {&IPPool{}, &IPAMBlock{}, `[kind: Invalid value: "IPPool": may not change]`},
	} {
		if got := fmt.Sprint(ValidateUpdate(tt.new, tt.old)); got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
}

func TestValidatePools(t *testing.T) {
	var pools []*IPPool
	for i, cidr := range []string{"10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "11.0.0.0/8", "fd00::/48", "fd00:0:0:1::/64", "not one", "12.0.0.0/8"} {
		pools = append(pools, &IPPool{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pool%d", i)}, Spec: IPPoolSpec{CIDR: cidr}})
	}
	got := ValidatePools(pools)
	for i, want := range []int{2, 1, 1, 0, 1, 1, 0, 0} {
		if len(got[i]) != want {
			t.Errorf("pool %d: %v, want %d", i, got[i], want)
		}
	}
	want := `spec.cidr: Invalid value: "10.2.0.0/16": overlaps IPPool pool0 (10.0.0.0/8)`
	if text := got[2].ToAggregate().Error(); text != want {
		t.Errorf("got %s, want %s", text, want)
	}
}

func TestValidatePool(t *testing.T) {
	near := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "near", Annotations: map[string]string{
		UnderlayAnnotation: `{"link":"eth0","prefixes":["172.16.10.11/24","fd00:16::11/64"],"mtu":1500}`,
	}}}
	near.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "near"}, {Type: corev1.NodeInternalIP, Address: "172.16.10.11"}}
	far := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "far", Annotations: map[string]string{UnderlayAnnotation: "{"}}}
	far.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "198.51.100.7"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.7"}}
	web := service(func(*corev1.ServiceSpec) {})
	headless := service(func(s *corev1.ServiceSpec) { s.ClusterIP, s.ClusterIPs = "None", []string{"None"} })
	for cidr, want := range map[string]string{
		"10.244.0.0/16":   "",
		"fd00:244::/56":   "",
		"not one":         "",
		"172.16.10.0/24":  "overlaps the address 172.16.10.11 of node near",
		"172.16.10.64/26": "", // a part of the network that is set aside for pods
		"172.16.0.0/16":   "overlaps the address 172.16.10.11 of node near",
		"fd00:16::/64":    "overlaps fd00:16::/64, the network of node near",
		"fd00:16::/80":    "",
		"198.51.100.0/28": "overlaps the address 198.51.100.7 of node far",
		"203.0.113.0/28":  "overlaps the address 203.0.113.7 of node far",
		"10.1.0.0/24":     "overlaps the cluster IP 10.1.0.1 of Service default/web",
		"fd00::/112":      "overlaps the cluster IP fd00::1 of Service default/web",
	} {
		errs := ValidatePool(&IPPool{Spec: IPPoolSpec{CIDR: cidr}}, []*corev1.Node{near, far}, []*corev1.Service{web, headless})
		got := ""
		if len(errs) > 0 {
			got = errs[0].Detail
		}
		if want != "" {
			want += ": choose a range that is not in use"
		}
		if got != want || len(errs) > 1 {
			t.Errorf("%s: %v, want %q", cidr, errs, want)
		}
	}
}

func TestValidateUnknownType(t *testing.T) {
	var errs field.ErrorList = Validate(&corev1.Pod{})
	if len(errs) != 1 {
		t.Errorf("got %v", errs)
	}
}
