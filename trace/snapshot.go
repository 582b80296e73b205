// Package trace explains one connection from intent: which service translates
// it, which policies on both sides decide and by which rule, which way it takes,
// and what comes of it. It asks the naive evaluator, so it is also what the
// kernel's program is checked against.
//
// It never looks at the kernel and sends nothing: a probe is the caller's.
package trace

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/policy"
	"github.com/twill-net/twill/service"
	"github.com/twill-net/twill/store"
)

// Snapshot is all intent that a trace depends on.
type Snapshot struct {
	policies policy.State
	pods     map[api.Key]*api.WorkloadEndpoint
	nodes    map[string]*corev1.Node
	services map[api.Key]*service.Service
	slices   map[api.Key][]*service.Slice // by service
	blocks   []*api.IPAMBlock
	pools    []*api.IPPool
	fabric   *api.FabricConfiguration
}

// kinds are what a snapshot holds.
var kinds = []*api.Kind{
	api.NamespaceKind, api.NodeKind, api.FabricConfigurationKind, api.IPPoolKind, api.IPAMBlockKind,
	api.WorkloadEndpointKind, api.ServiceKind, api.EndpointSliceKind, api.NetworkPolicyKind,
}

// Load reads a snapshot from the store.
func Load(ctx context.Context, s store.Store) (*Snapshot, error) {
	var objects []api.Object
	for _, kind := range kinds {
		list, err := s.List(ctx, kind, "")
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", kind.Plural, err)
		}
		objects = append(objects, list.Items...)
	}
	return New(objects)
}

// New makes a snapshot of objects, which it keeps and does not change. An object
// that can't be understood is an error: a trace without it would be wrong.
func New(objects []api.Object) (*Snapshot, error) {
	s := &Snapshot{
		policies: policy.State{
			Namespaces: map[string]map[string]string{},
			Endpoints:  map[api.Key]policy.Endpoint{},
			Policies:   map[api.Key]*policy.Policy{},
		},
		pods:     map[api.Key]*api.WorkloadEndpoint{},
		nodes:    map[string]*corev1.Node{},
		services: map[api.Key]*service.Service{},
		slices:   map[api.Key][]*service.Slice{},
	}
	for _, obj := range objects {
		if err := s.add(obj); err != nil {
			return nil, fmt.Errorf("%s %s: %w", api.KindOf(obj).Name, api.KeyOf(obj), err)
		}
	}
	return s, nil
}

func (s *Snapshot) add(obj api.Object) error {
	key := api.KeyOf(obj)
	switch o := obj.(type) {
	case *corev1.Namespace:
		s.policies.Namespaces[o.Name] = o.Labels
	case *corev1.Node:
		s.nodes[o.Name] = o
	case *api.FabricConfiguration:
		if o.Name == api.FabricConfigurationName {
			s.fabric = o
		}
	case *api.IPPool:
		s.pools = append(s.pools, o)
	case *api.IPAMBlock:
		s.blocks = append(s.blocks, o)
	case *api.WorkloadEndpoint:
		e, err := policy.EndpointOf(o)
		if err != nil {
			return err
		}
		s.pods[key], s.policies.Endpoints[key] = o, e
	case *corev1.Service:
		if parsed := service.Parse(o); parsed != nil {
			s.services[key] = parsed
		}
	case *discoveryv1.EndpointSlice:
		if slice := service.ParseSlice(o); slice != nil {
			of := slice.Service
			s.slices[of] = append(s.slices[of], slice)
		}
	case *networkingv1.NetworkPolicy:
		p, err := policy.Parse(o)
		if err != nil {
			return err
		}
		s.policies.Policies[key] = p
	}
	return nil
}

// frontendAt finds the front end that a node has for an address and port.
func (s *Snapshot) frontendAt(node string, addr netip.Addr, proto uint8, port uint16) (api.Key, service.Frontend, bool) {
	local := service.Local{Node: node}
	if n := s.nodes[node]; n != nil {
		local.Zone, local.Addrs = n.Labels[corev1.LabelTopologyZone], api.NodeAddresses(n)
	}
	for _, key := range slices.SortedFunc(maps.Keys(s.services), compareKeys) {
		frontends, _ := s.services[key].Frontends(s.slices[key], local)
		for _, f := range frontends {
			if f.Addr == addr && f.Port == port && f.Protocol == proto {
				return key, f, true
			}
		}
	}
	return api.Key{}, service.Frontend{}, false
}

// serviceHas says whether the address is a service's, on whatever port.
func (s *Snapshot) serviceOf(addr netip.Addr) (api.Key, bool) {
	for key, svc := range s.services {
		if slices.Contains(svc.ClusterIPs, addr) {
			return key, true
		}
	}
	return api.Key{}, false
}

// self is a node as its own agent would plan for it.
func (s *Snapshot) self(node string) (fabric.Self, error) {
	self := fabric.Self{Name: node}
	n := s.nodes[node]
	if n == nil {
		return self, fmt.Errorf("there is no node %q", node)
	}
	text, ok := n.Annotations[api.UnderlayAnnotation]
	if !ok {
		return self, fmt.Errorf("node %s has not published how it is connected: does its agent run?", node)
	}
	if err := json.Unmarshal([]byte(text), &self.Underlay); err != nil {
		return self, fmt.Errorf("node %s: annotation %s: %w", node, api.UnderlayAnnotation, err)
	}
	return self, nil
}

// path is the way from one node to an address of a pod on another.
func (s *Snapshot) path(from, to string, addr netip.Addr) (fabric.Path, error) {
	self, err := s.self(from)
	if err != nil {
		return fabric.Path{}, err
	}
	n := s.nodes[to]
	if n == nil {
		return fabric.Path{}, fmt.Errorf("there is no node %q", to)
	}
	receives, err := api.NodeReceives(n)
	if err != nil {
		return fabric.Path{}, err
	}
	peer := fabric.Peer{Name: to, Addrs: api.NodeAddresses(n), Receives: receives}
	return fabric.Choose(self, fabric.ConfigFrom(s.fabric), peer, s.modeOf(addr), addr.Is6())
}

// modeOf is the mode of the smallest pool with the address, as a planner has it;
// of those with one range, of the one whose name comes first.
func (s *Snapshot) modeOf(addr netip.Addr) (mode api.EncapsulationMode) {
	bits, first := -1, ""
	for _, p := range s.pools {
		prefix, err := netip.ParsePrefix(p.Spec.CIDR)
		if err != nil || !prefix.Contains(addr) {
			continue
		}
		if prefix.Bits() > bits || prefix.Bits() == bits && p.Name < first {
			bits, first, mode = prefix.Bits(), p.Name, p.Spec.VXLANMode
		}
	}
	return mode
}
