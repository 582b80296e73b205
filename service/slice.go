package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"unique"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/twill-net/twill/api"
)

// Slice is what balancing needs of an EndpointSlice: small, and parsed.
type Slice struct {
	Key     api.Key
	Service api.Key // whose endpoints these are

	ports     []Port // as the endpoints have them; NodePort is unused
	endpoints []endpoint
}

// endpoint is one address behind a Service.
type endpoint struct {
	addr                        netip.Addr
	node                        unique.Handle[string]
	hints                       *hints // nil: none
	ready, serving, terminating bool
}

// hints say for whom the control plane meant an endpoint.
type hints struct{ nodes, zones []string }

// compare orders hints in some way, so that which of two copies of an endpoint
// counts does not depend on the order of slices.
func (h *hints) compare(o *hints) int {
	none := &hints{}
	h, o = cmp.Or(h, none), cmp.Or(o, none)
	return cmp.Or(slices.Compare(h.nodes, o.nodes), slices.Compare(h.zones, o.zones))
}

// ParseSlice takes from an EndpointSlice what balancing needs. It returns nil
// for one that belongs to no Service, holds no addresses, or is labelled as a
// headless Service's or another proxy's, as kube-proxy does. The EndpointSlice is
// not kept. Entries that can't be understood are left out: they are written by
// controllers, and the other endpoints serve.
func ParseSlice(es *discoveryv1.EndpointSlice) *Slice {
	name := es.Labels[discoveryv1.LabelServiceName]
	if name == "" || es.AddressType == discoveryv1.AddressTypeFQDN || leftToOthers(es.Labels) {
		return nil
	}
	s := &Slice{Key: api.KeyOf(es), Service: api.Key{Namespace: es.Namespace, Name: strings.Clone(name)}}
	for _, p := range es.Ports {
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			continue
		}
		port := Port{Port: uint16(*p.Port), Protocol: TCP}
		if p.Name != nil {
			port.Name = strings.Clone(*p.Name)
		}
		if p.Protocol != nil {
			var ok bool
			if port.Protocol, ok = ParseProtocol(*p.Protocol); !ok {
				continue
			}
		}
		s.ports = append(s.ports, port)
	}
	s.endpoints = make([]endpoint, 0, len(es.Endpoints))
	for i := range es.Endpoints {
		if ep, ok := parseEndpoint(es.AddressType, &es.Endpoints[i]); ok {
			s.endpoints = append(s.endpoints, ep)
		}
	}
	return s
}

func parseEndpoint(family discoveryv1.AddressType, e *discoveryv1.Endpoint) (endpoint, bool) {
	if len(e.Addresses) == 0 {
		return endpoint{}, false
	}
	// The API defines no meaning for addresses after the first.
	addr, ok := parseAddr(e.Addresses[0])
	if !ok || addr.Is4() != (family == discoveryv1.AddressTypeIPv4) {
		return endpoint{}, false
	}
	ep := endpoint{
		addr:        addr,
		ready:       e.Conditions.Ready == nil || *e.Conditions.Ready,
		serving:     e.Conditions.Serving == nil || *e.Conditions.Serving,
		terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating,
	}
	if e.NodeName != nil {
		ep.node = unique.Make(*e.NodeName)
	}
	if h := e.Hints; h != nil && len(h.ForNodes)+len(h.ForZones) > 0 {
		ep.hints = &hints{}
		for _, n := range h.ForNodes {
			ep.hints.nodes = append(ep.hints.nodes, strings.Clone(n.Name))
		}
		for _, z := range h.ForZones {
			ep.hints.zones = append(ep.hints.zones, strings.Clone(z.Name))
		}
	}
	return ep, true
}

func (e *endpoint) hintsNode() bool { return e.hints != nil && len(e.hints.nodes) > 0 }
func (e *endpoint) hintsZone() bool { return e.hints != nil && len(e.hints.zones) > 0 }

func (e *endpoint) forNode(node string) bool {
	return e.hints != nil && slices.Contains(e.hints.nodes, node)
}

func (e *endpoint) forZone(zone string) bool {
	return e.hints != nil && slices.Contains(e.hints.zones, zone)
}
