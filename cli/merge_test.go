package cli

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMergeService(t *testing.T) {
	stored := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "a", UID: "u", ResourceVersion: "7",
			Labels:      map[string]string{"mine": "x", "service.kubernetes.io/y": "z"},
			Annotations: map[string]string{"mine": "x", "twill.io/y": "z"}},
		Spec: corev1.ServiceSpec{Type: "NodePort", ClusterIP: "10.1.0.1", ClusterIPs: []string{"10.1.0.1", "fd00::1"},
			IPFamilies: []corev1.IPFamily{"IPv4", "IPv6"},
			Ports:      []corev1.ServicePort{{Port: 80, Protocol: "TCP", NodePort: 30080}, {Port: 81, Protocol: "TCP", NodePort: 30081}}},
	}
	stored.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	for name, tt := range map[string]struct {
		change    func(*corev1.ServiceSpec)
		wantIPs   string
		nodePorts string
	}{
		"nothing said":         {func(*corev1.ServiceSpec) {}, "10.1.0.1 fd00::1", "[30080 0]"},
		"the first address":    {func(s *corev1.ServiceSpec) { s.ClusterIP, s.ClusterIPs = "10.1.0.1", []string{"10.1.0.1"} }, "10.1.0.1 fd00::1", "[30080 0]"},
		"another address":      {func(s *corev1.ServiceSpec) { s.ClusterIP, s.ClusterIPs = "10.1.0.2", []string{"10.1.0.2"} }, "10.1.0.2", "[30080 0]"},
		"single stack":         {func(s *corev1.ServiceSpec) { p := corev1.IPFamilyPolicySingleStack; s.IPFamilyPolicy = &p }, "10.1.0.1", "[30080 0]"},
		"to ClusterIP":         {func(s *corev1.ServiceSpec) { s.Type = "ClusterIP" }, "10.1.0.1 fd00::1", "[0 0]"},
		"to ExternalName":      {func(s *corev1.ServiceSpec) { s.Type = "ExternalName" }, "", "[0 0]"},
		"node port moves":      {func(s *corev1.ServiceSpec) { s.Ports[1].NodePort = 30080 }, "10.1.0.1 fd00::1", "[0 30080]"},
		"node port is changed": {func(s *corev1.ServiceSpec) { s.Ports[0].NodePort = 31000 }, "10.1.0.1 fd00::1", "[31000 0]"},
	} {
		desired := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "a"},
			Spec: corev1.ServiceSpec{Type: "NodePort", Ports: []corev1.ServicePort{{Port: 80, Protocol: "TCP"}, {Port: 82, Protocol: "TCP"}}}}
		tt.change(&desired.Spec)
		got := merge(desired, stored).(*corev1.Service)
		if ips := strings.Join(got.Spec.ClusterIPs, " "); ips != tt.wantIPs {
			t.Errorf("%s: addresses %s, want %s", name, ips, tt.wantIPs)
		}
		if ports := fmt.Sprint([]int32{got.Spec.Ports[0].NodePort, got.Spec.Ports[1].NodePort}); ports != tt.nodePorts {
			t.Errorf("%s: node ports %s, want %s", name, ports, tt.nodePorts)
		}
		if got.UID != "u" || got.ResourceVersion != "7" || len(got.Status.LoadBalancer.Ingress) != 1 {
			t.Errorf("%s: lost what is the store's: %+v", name, got)
		}
		if diff := cmp.Diff(map[string]string{"service.kubernetes.io/y": "z"}, got.Labels); diff != "" {
			t.Errorf("%s: labels (-want +got)\n%s", name, diff)
		}
		if diff := cmp.Diff(map[string]string{"twill.io/y": "z"}, got.Annotations); diff != "" {
			t.Errorf("%s: annotations (-want +got)\n%s", name, diff)
		}
	}
}

func TestMergeNode(t *testing.T) {
	stored := &corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "10.244.0.0/24", PodCIDRs: []string{"10.244.0.0/24"}}}
	stored.Status.Addresses = []corev1.NodeAddress{{Type: "InternalIP", Address: "172.16.10.11"}}
	stored.Status.Conditions = []corev1.NodeCondition{{Type: "Ready"}}
	got := merge(&corev1.Node{}, stored).(*corev1.Node)
	if diff := cmp.Diff(stored, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	other := []corev1.NodeAddress{{Type: "InternalIP", Address: "172.16.10.99"}}
	got = merge(&corev1.Node{Status: corev1.NodeStatus{Addresses: other}}, stored).(*corev1.Node)
	if len(got.Status.Conditions) != 1 || got.Status.Addresses[0] != other[0] {
		t.Errorf("got %+v", got.Status)
	}
}
