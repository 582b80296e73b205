package install

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

func TestRangesAreFound(t *testing.T) {
	kubeadm := corev1.ConfigMap{Data: map[string]string{"ClusterConfiguration": "networking:\n  podSubnet: 10.10.0.0/16,fd10::/56\n  serviceSubnet: 10.20.0.0/16\n"}}
	broken := corev1.ConfigMap{Data: map[string]string{"ClusterConfiguration": "networking: ["}}
	controllers := []corev1.Pod{{Spec: corev1.PodSpec{Containers: []corev1.Container{{Command: []string{"kube-controller-manager", "--cluster-cidr=10.30.0.0/16"}},
		{Args: []string{"--service-cluster-ip-range=10.40.0.0/16"}}}}}}
	nodes := []corev1.Node{{Spec: corev1.NodeSpec{PodCIDRs: []string{"10.50.1.0/24", "fd50:0:0:1::/64"}}}, {Spec: corev1.NodeSpec{PodCIDRs: []string{"10.50.2.0/24", "fd50:0:0:2::/64"}}}}
	for _, c := range []struct {
		kubeadm     corev1.ConfigMap
		controllers []corev1.Pod
		nodes       []corev1.Node
		want        string
	}{
		{kubeadm, controllers, nodes, "10.10.0.0/16, fd10::/56 (ConfigMap kubeadm-config)"},
		{broken, controllers, nodes, "10.30.0.0/16 (--cluster-cidr of kube-controller-manager)"},
		{broken, nil, nodes, "10.50.0.0/16, fd50::/56 (guessed from spec.podCIDRs of nodes)"},
		{broken, nil, make([]corev1.Node, 1), "not known"},
	} {
		if got := podRanges(c.kubeadm, c.controllers, c.nodes).String(); got != c.want {
			t.Errorf("pods: %s, want %s", got, c.want)
		}
	}
	service := corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.60.0.1"}}}
	object := networkingv1.ServiceCIDR{Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.70.0.0/16"}}}
	object.Name = "kubernetes"
	for _, c := range []struct {
		objects     []networkingv1.ServiceCIDR
		kubeadm     corev1.ConfigMap
		controllers []corev1.Pod
		service     corev1.Service
		want        string
	}{
		{[]networkingv1.ServiceCIDR{object}, kubeadm, controllers, service, "10.70.0.0/16 (ServiceCIDR kubernetes)"},
		{nil, kubeadm, controllers, service, "10.20.0.0/16 (ConfigMap kubeadm-config)"},
		{nil, broken, controllers, service, "10.40.0.0/16 (--service-cluster-ip-range of kube-apiserver)"},
		{nil, broken, nil, service, "10.60.0.1/32 (the address of Service kubernetes, of a range that is not known)"},
		{nil, broken, nil, corev1.Service{}, "not known"},
	} {
		if got := serviceRanges(c.objects, c.kubeadm, c.controllers, c.service).String(); got != c.want {
			t.Errorf("services: %s, want %s", got, c.want)
		}
	}
}

func TestAround(t *testing.T) {
	for _, c := range []struct {
		given []string
		want  string
	}{
		{nil, "[]"},
		{[]string{"10.244.0.0/24", "10.244.3.0/24"}, "[10.244.0.0/16]"},
		{[]string{"10.240.0.0/24", "10.243.9.0/24"}, "[10.240.0.0/14]"},
		{[]string{"10.0.0.0/12", "10.244.0.0/24"}, "[10.0.0.0/8]"},
		{[]string{"fd00:1::/64", "10.1.2.0/24", "fd00:1:0:ff::/64"}, "[10.1.0.0/16 fd00:1::/56]"},
		{[]string{"10.1.0.0/24", "192.168.0.0/24"}, "[]"},
	} {
		var given []netip.Prefix
		for _, text := range c.given {
			given = append(given, netip.MustParsePrefix(text))
		}
		got := "["
		for i, p := range around(given) {
			if i > 0 {
				got += " "
			}
			got += p.String()
		}
		if got += "]"; got != c.want {
			t.Errorf("%v: %s, want %s", c.given, got, c.want)
		}
	}
}
