package api

import (
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Object is anything that a store keeps: object metadata and a deep copy.
// Objects handed out by a store or a watch are shared and must not be changed;
// copy first.
type Object interface {
	metav1.Object
	runtime.Object
}

// Kind describes one kind of object.
type Kind struct {
	Group      string // "" is the Kubernetes core group
	Version    string
	Name       string   // "NetworkPolicy"
	Plural     string   // "networkpolicies": the resource name and the store's path element
	Short      []string // "netpol": what else a user may type
	Namespaced bool
	New        func() Object // an empty object with its type meta set
}

// APIVersion is the apiVersion field of the kind's objects, such as
// "networking.k8s.io/v1".
func (k *Kind) APIVersion() string {
	return schema.GroupVersion{Group: k.Group, Version: k.Version}.String()
}

// The kinds, in the order in which a set of manifests is to be applied: what
// others refer to comes first.
var (
	NamespaceKind = kind(Kind{Version: "v1", Name: "Namespace", Plural: "namespaces", Short: []string{"ns"}},
		func() *corev1.Namespace { return &corev1.Namespace{} })
	NodeKind = kind(Kind{Version: "v1", Name: "Node", Plural: "nodes", Short: []string{"no"}},
		func() *corev1.Node { return &corev1.Node{} })
	FabricConfigurationKind = kind(Kind{Group: GroupTwill, Version: "v1", Name: "FabricConfiguration", Plural: "fabricconfigurations", Short: []string{"fabric"}},
		func() *FabricConfiguration { return &FabricConfiguration{} })
	IPPoolKind = kind(Kind{Group: GroupCalico, Version: "v3", Name: "IPPool", Plural: "ippools", Short: []string{"pool", "pools"}},
		func() *IPPool { return &IPPool{} })
	IPAMBlockKind = kind(Kind{Group: GroupCalico, Version: "v3", Name: "IPAMBlock", Plural: "ipamblocks", Short: []string{"block", "blocks"}},
		func() *IPAMBlock { return &IPAMBlock{} })
	WorkloadEndpointKind = kind(Kind{Group: GroupCalico, Version: "v3", Name: "WorkloadEndpoint", Plural: "workloadendpoints", Short: []string{"wep", "weps", "pod", "pods", "po"}, Namespaced: true},
		func() *WorkloadEndpoint { return &WorkloadEndpoint{} })
	ServiceKind = kind(Kind{Version: "v1", Name: "Service", Plural: "services", Short: []string{"svc"}, Namespaced: true},
		func() *corev1.Service { return &corev1.Service{} })
	EndpointSliceKind = kind(Kind{Group: "discovery.k8s.io", Version: "v1", Name: "EndpointSlice", Plural: "endpointslices", Short: []string{"eps"}, Namespaced: true},
		func() *discoveryv1.EndpointSlice { return &discoveryv1.EndpointSlice{} })
	LeaseKind = kind(Kind{Group: "coordination.k8s.io", Version: "v1", Name: "Lease", Plural: "leases", Namespaced: true},
		func() *coordinationv1.Lease { return &coordinationv1.Lease{} })
	NetworkPolicyKind = kind(Kind{Group: "networking.k8s.io", Version: "v1", Name: "NetworkPolicy", Plural: "networkpolicies", Short: []string{"netpol"}, Namespaced: true},
		func() *networkingv1.NetworkPolicy { return &networkingv1.NetworkPolicy{} })
)

var kinds []*Kind

// Kinds lists every kind, in the order in which manifests are applied.
func Kinds() []*Kind { return kinds }

func kind[T Object](k Kind, empty func() T) *Kind {
	gvk := schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Name}
	k.New = func() Object {
		obj := empty()
		obj.GetObjectKind().SetGroupVersionKind(gvk)
		return obj
	}
	kinds = append(kinds, &k)
	return &k
}

// KindOf returns the kind of an object by its Go type, so that it also works
// for objects whose apiVersion and kind were left empty. It returns nil for a
// type that Twill does not keep.
func KindOf(obj Object) *Kind {
	switch obj.(type) {
	case *corev1.Namespace:
		return NamespaceKind
	case *corev1.Node:
		return NodeKind
	case *FabricConfiguration:
		return FabricConfigurationKind
	case *IPPool:
		return IPPoolKind
	case *IPAMBlock:
		return IPAMBlockKind
	case *WorkloadEndpoint:
		return WorkloadEndpointKind
	case *corev1.Service:
		return ServiceKind
	case *discoveryv1.EndpointSlice:
		return EndpointSliceKind
	case *networkingv1.NetworkPolicy:
		return NetworkPolicyKind
	case *coordinationv1.Lease:
		return LeaseKind
	}
	return nil
}

// LookupKind finds a kind by what a user types: kind name, singular, plural or
// short name, in any case. It returns nil when there is none.
func LookupKind(word string) *Kind {
	word = strings.ToLower(word)
	for _, k := range kinds {
		if word == strings.ToLower(k.Name) || word == k.Plural {
			return k
		}
		for _, s := range k.Short {
			if word == s {
				return k
			}
		}
	}
	return nil
}

// LookupGVK finds a kind by apiVersion and kind as they stand in a manifest. It
// returns nil when there is none.
func LookupGVK(apiVersion, name string) *Kind {
	for _, k := range kinds {
		if k.APIVersion() == apiVersion && k.Name == name {
			return k
		}
	}
	return nil
}

// Key names one object within its kind. Namespace is empty for cluster-scoped
// kinds.
type Key struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// KeyOf returns the object's key.
func KeyOf(obj metav1.Object) Key { return Key{obj.GetNamespace(), obj.GetName()} }

// String is "namespace/name", or "name" for cluster-scoped objects.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}
