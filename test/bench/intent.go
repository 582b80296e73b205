package main

import (
	"encoding/json"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/plan"
)

// size is how much policy a cluster has.
type size struct{ policies, locals, remotes int }

var (
	fullSize  = size{5000, 250, 50000}
	quickSize = size{500, 50, 5000}
)

// Each local pod is in one of so many groups, so 5,000 policies make 100 for
// each pod.
const groups = 50

// Namespaces of remote pods.
const namespaces = 500

// policyOf is the i-th policy: it lets the remote pods of one client (10 of
// 50,000) and a range outside reach the pods of one group on a port.
func policyOf(i, port int) *networkingv1.NetworkPolicy {
	block := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(i >> 8), byte(i), 0}), 24)
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: fmt.Sprintf("policy-%d", i)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"group": fmt.Sprint(i % groups)}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"client": fmt.Sprint(i)}}, NamespaceSelector: &metav1.LabelSelector{}},
					{IPBlock: &networkingv1.IPBlock{CIDR: block.String()}},
				},
				Ports: tcpPort(port),
			}},
		},
	}
}

func tcpPort(port int) []networkingv1.NetworkPolicyPort {
	return []networkingv1.NetworkPolicyPort{{Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(intstr.FromInt32(int32(port)))}}
}

// localPod is the i-th pod of the node.
func localPod(i int) plan.Local {
	return plan.Local{
		Pod: api.Key{Namespace: "app", Name: fmt.Sprintf("local-%d", i)}, ContainerID: fmt.Sprintf("c%d", i),
		HostInterface: fmt.Sprintf("tw-local%d", i), MAC: plan.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)},
		Addrs:  []netip.Addr{addrOf("10.0.0.0", i)},
		Labels: map[string]string{"group": fmt.Sprint(i % groups), "pod": fmt.Sprintf("local-%d", i)},
	}
}

// remotePod is the i-th pod of other nodes. Each has labels that no other one
// has, which is the worst case.
func remotePod(i, client int) *api.WorkloadEndpoint {
	return &api.WorkloadEndpoint{
		TypeMeta: metav1.TypeMeta{APIVersion: api.WorkloadEndpointKind.APIVersion(), Kind: api.WorkloadEndpointKind.Name},
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns-%d", i%namespaces), Name: fmt.Sprintf("remote-%d", i), Labels: map[string]string{
			"client": fmt.Sprint(client), "pod": fmt.Sprintf("remote-%d", i), "app": fmt.Sprintf("app-%d", i%1000), "release": "stable",
		}},
		Spec: api.WorkloadEndpointSpec{
			Node: fmt.Sprintf("node-%d", i%1000), Pod: fmt.Sprintf("remote-%d", i), ContainerID: fmt.Sprintf("%064d", i), Endpoint: "eth0",
			InterfaceName: fmt.Sprintf("tw-%d", i), MAC: "02:00:00:00:00:01",
			IPNetworks: []string{addrOf("10.1.0.0", i).String() + "/32"},
			Ports:      []api.WorkloadEndpointPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 8080}},
		},
	}
}

func namespaceOf(name string) *corev1.Namespace {
	return &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": name}}}
}

// eachPolicyObject gives all of a cluster's objects that policy is made of, in
// the order in which a node may get them.
func (s size) eachPolicyObject(f func(api.Object) error) error {
	if err := f(namespaceOf("app")); err != nil {
		return err
	}
	for i := range namespaces {
		if err := f(namespaceOf(fmt.Sprintf("ns-%d", i))); err != nil {
			return err
		}
	}
	for i := range s.remotes {
		if err := f(remotePod(i, i%s.policies)); err != nil {
			return err
		}
	}
	for i := range s.policies {
		if err := f(policyOf(i, 80)); err != nil {
			return err
		}
	}
	return nil
}

// nodeOf is a node that can be reached in every way.
func nodeOf(name string, addr netip.Addr) (*corev1.Node, error) {
	self := fabric.Self{Name: name, Underlay: fabric.Underlay{Link: "eth0", Prefixes: []netip.Prefix{netip.PrefixFrom(addr, 16)}, MTU: 1500}}
	receives, err := json.Marshal(fabric.Receives(self, fabric.ConfigFrom(nil)))
	if err != nil {
		return nil, err
	}
	return &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{api.ReceivesAnnotation: string(receives)}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr.String()}}},
	}, nil
}

func blockOf(name, node string, prefix netip.Prefix) *api.IPAMBlock {
	return &api.IPAMBlock{
		TypeMeta:   metav1.TypeMeta{APIVersion: api.IPAMBlockKind.APIVersion(), Kind: api.IPAMBlockKind.Name},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       api.IPAMBlockSpec{CIDR: prefix.String(), Affinity: api.AffinityOf(node)},
	}
}

func poolOf(cidr string) *api.IPPool {
	return &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "pods"}, Spec: api.IPPoolSpec{CIDR: cidr, NATOutgoing: true}}
}

func preference(backends ...string) *api.FabricConfiguration {
	return &api.FabricConfiguration{ObjectMeta: metav1.ObjectMeta{Name: api.FabricConfigurationName}, Spec: api.FabricConfigurationSpec{Preference: backends}}
}

// serviceOf is the i-th Service; its address is clusterIP(i).
func serviceOf(i int) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("service-%d", i)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: clusterIP(i).String(), ClusterIPs: []string{clusterIP(i).String()},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(trafficPort)}},
		},
	}
}

func clusterIP(i int) netip.Addr { return addrOf("10.96.0.1", i) }

// sliceMax is how many endpoints a controller puts into one slice.
const sliceMax = 100

// slicesOf are the i-th Service's slices for endpoints of these addresses.
func slicesOf(i int, addrs []netip.Addr) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	for n := 0; len(addrs) > 0; n++ {
		part := addrs[:min(len(addrs), sliceMax)]
		addrs = addrs[len(part):]
		s := &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("service-%d-%d", i, n),
				Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("service-%d", i)}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](trafficPort)}},
		}
		for _, a := range part {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, NodeName: ptr.To("there"),
				Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}})
		}
		all = append(all, s)
	}
	return all
}

// endpointsOf are n addresses for the i-th Service.
func endpointsOf(i, n int) []netip.Addr {
	var all []netip.Addr
	for j := range n {
		all = append(all, addrOf("10.128.0.0", i*n+j))
	}
	return all
}
