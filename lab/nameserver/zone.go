// Package nameserver answers the lab's DNS queries: the names of Services in
// the store, as the Kubernetes DNS specification lays them out.
//
// It never asks other servers: names outside the cluster are refused at once,
// so that a pod's resolver does not wait for them.
package nameserver

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// ttl is how many seconds an answer may be kept.
const ttl = 5

// Zone holds what can be asked for. Its methods may be called concurrently.
type Zone struct {
	domain string // "cluster.local."

	mu         sync.RWMutex
	services   map[api.Key]*corev1.Service
	namespaces map[string]int // how many services each has
	slices     map[api.Key]*discoveryv1.EndpointSlice
	endpoints  map[api.Key]map[api.Key]struct{} // service → its slices
}

// NewZone returns an empty zone for a cluster domain such as "cluster.local".
func NewZone(domain string) *Zone {
	return &Zone{
		domain:     dns.CanonicalName(domain),
		services:   map[api.Key]*corev1.Service{},
		namespaces: map[string]int{},
		slices:     map[api.Key]*discoveryv1.EndpointSlice{},
		endpoints:  map[api.Key]map[api.Key]struct{}{},
	}
}

// Follow keeps the zone in step with the store until ctx ends.
func (z *Zone) Follow(ctx context.Context, s store.Store) {
	var wait sync.WaitGroup
	wait.Go(func() {
		store.Follow(ctx, s, api.ServiceKind, store.Handler{
			Put:     func(o api.Object) { z.putService(o.(*corev1.Service)) },
			Deleted: z.deleteService,
		})
	})
	wait.Go(func() {
		store.Follow(ctx, s, api.EndpointSliceKind, store.Handler{
			Put:     func(o api.Object) { z.putSlice(o.(*discoveryv1.EndpointSlice)) },
			Deleted: z.deleteSlice,
		})
	})
	wait.Wait()
}

func (z *Zone) putService(svc *corev1.Service) {
	z.mu.Lock()
	defer z.mu.Unlock()
	key := api.KeyOf(svc)
	if _, ok := z.services[key]; !ok {
		z.namespaces[key.Namespace]++
	}
	z.services[key] = svc
}

func (z *Zone) deleteService(key api.Key) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.services, key)
	if z.namespaces[key.Namespace]--; z.namespaces[key.Namespace] == 0 {
		delete(z.namespaces, key.Namespace)
	}
}

func (z *Zone) putSlice(slice *discoveryv1.EndpointSlice) {
	z.mu.Lock()
	defer z.mu.Unlock()
	key := api.KeyOf(slice)
	z.forget(key)
	z.slices[key] = slice
	of := serviceOf(slice)
	if z.endpoints[of] == nil {
		z.endpoints[of] = map[api.Key]struct{}{}
	}
	z.endpoints[of][key] = struct{}{}
}

func (z *Zone) deleteSlice(key api.Key) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.forget(key)
}

func (z *Zone) forget(key api.Key) {
	old, ok := z.slices[key]
	if !ok {
		return
	}
	of := serviceOf(old)
	delete(z.slices, key)
	if delete(z.endpoints[of], key); len(z.endpoints[of]) == 0 {
		delete(z.endpoints, of)
	}
}

func serviceOf(slice *discoveryv1.EndpointSlice) api.Key {
	return api.Key{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
}

// Answer returns the records for a question and the response code. A name that
// exists without records of the type has code success and no records.
func (z *Zone) Answer(q dns.Question) ([]dns.RR, int) {
	name := dns.CanonicalName(q.Name)
	if !dns.IsSubDomain(z.domain, name) {
		return nil, dns.RcodeRefused
	}
	z.mu.RLock()
	defer z.mu.RUnlock()
	rest, ok := strings.CutSuffix(name, "svc."+z.domain)
	if !ok {
		return nil, code(name == z.domain)
	}
	labels := strings.FieldsFunc(rest, func(r rune) bool { return r == '.' })
	switch len(labels) {
	case 0: // svc.cluster.local
		return nil, dns.RcodeSuccess
	case 1: // NAMESPACE.svc.cluster.local
		return nil, code(z.namespaces[labels[0]] > 0)
	case 2:
		return z.service(q, api.Key{Namespace: labels[1], Name: labels[0]})
	case 3: // HOSTNAME.SERVICE.NAMESPACE.svc.cluster.local
		key := api.Key{Namespace: labels[2], Name: labels[1]}
		if svc, ok := z.services[key]; ok && svc.Spec.ClusterIP == corev1.ClusterIPNone {
			found := z.addresses(key, svc, labels[0])
			return records(q, found), code(len(found) > 0)
		}
	}
	return nil, dns.RcodeNameError
}

func code(exists bool) int {
	if exists {
		return dns.RcodeSuccess
	}
	return dns.RcodeNameError
}

func (z *Zone) service(q dns.Question, key api.Key) ([]dns.RR, int) {
	svc, ok := z.services[key]
	switch {
	case !ok:
		return nil, dns.RcodeNameError
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		cname := &dns.CNAME{Hdr: header(q, dns.TypeCNAME), Target: dns.Fqdn(svc.Spec.ExternalName)}
		return []dns.RR{cname}, dns.RcodeSuccess
	case svc.Spec.ClusterIP == corev1.ClusterIPNone:
		return records(q, z.addresses(key, svc, "")), dns.RcodeSuccess
	}
	texts := svc.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{svc.Spec.ClusterIP}
	}
	var found []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			found = append(found, a)
		}
	}
	return records(q, found), dns.RcodeSuccess
}

// addresses are those of the service's ready endpoints, of one hostname if that
// is not empty.
func (z *Zone) addresses(key api.Key, svc *corev1.Service, hostname string) []netip.Addr {
	var out []netip.Addr
	for slice := range z.endpoints[key] {
		for _, e := range z.slices[slice].Endpoints {
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			if !ready && !svc.Spec.PublishNotReadyAddresses {
				continue
			}
			if hostname != "" && (e.Hostname == nil || *e.Hostname != hostname) {
				continue
			}
			for _, text := range e.Addresses {
				if a, err := netip.ParseAddr(text); err == nil {
					out = append(out, a)
				}
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func records(q dns.Question, addrs []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range addrs {
		switch {
		case q.Qtype == dns.TypeA && a.Is4():
			out = append(out, &dns.A{Hdr: header(q, dns.TypeA), A: net.IP(a.AsSlice())})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			out = append(out, &dns.AAAA{Hdr: header(q, dns.TypeAAAA), AAAA: net.IP(a.AsSlice())})
		}
	}
	return out
}

func header(q dns.Question, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}
