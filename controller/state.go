package controller

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/twill-net/twill/api"
)

// state is what the watches told, indexed so that one pod's event costs what
// the pod has labels and its services have endpoints, and nothing for the other
// services.
type state struct {
	services  map[api.Key]*service
	endpoints map[api.Key]*endpoint
	inSpace   map[string]map[*endpoint]struct{} // endpoints by namespace
	selecting map[pair]map[*service]struct{}    // services by one pair of their selector
	slices    map[api.Key]sliceRecord
}

// pair is a label of a namespace. Each service stands under one pair of its
// selector: who lacks that one, lacks the whole.
type pair struct{ namespace, key, value string }

// service is a Service and what derives from it. It outlives the object until
// its slices are gone too.
type service struct {
	key       api.Key
	object    *corev1.Service // nil: deleted
	indexed   pair
	endpoints map[*endpoint]struct{} // that the selector matches
	slices    map[string]struct{}    // names of the slices that we wrote
}

// endpoint is what slices need of a WorkloadEndpoint.
type endpoint struct {
	key         api.Key
	labels      map[string]string
	node, pod   string
	addresses   [2]netip.Addr // of either family, in the order of families
	ports       []api.WorkloadEndpointPort
	ready       bool
	terminating bool

	position uint64                // where it falls in the partition into slices
	digests  [2][2]digest          // of its entry, by family and by whether unready ones count
	services map[*service]struct{} // that select it
}

// sliceRecord is what is known of an EndpointSlice in the store.
type sliceRecord struct {
	owner   api.Key // its service, if it is ours
	ours    bool
	version string // resourceVersion
	digest  digest
}

// families is the order in which arrays hold what each family has.
var families = [2]corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

func newState() *state {
	return &state{
		services:  map[api.Key]*service{},
		endpoints: map[api.Key]*endpoint{},
		inSpace:   map[string]map[*endpoint]struct{}{},
		selecting: map[pair]map[*service]struct{}{},
		slices:    map[api.Key]sliceRecord{},
	}
}

// service returns the Service in the store, or nil.
func (s *state) service(key api.Key) *corev1.Service {
	if svc := s.services[key]; svc != nil {
		return svc.object
	}
	return nil
}

// entry returns the record of a service, made if it is missing.
func (s *state) entry(key api.Key) *service {
	svc := s.services[key]
	if svc == nil {
		svc = &service{key: key, endpoints: map[*endpoint]struct{}{}, slices: map[string]struct{}{}}
		s.services[key] = svc
	}
	return svc
}

// drop forgets a service of which nothing is left.
func (s *state) drop(svc *service) {
	if svc.object == nil && len(svc.slices) == 0 {
		delete(s.services, svc.key)
	}
}

func selector(svc *corev1.Service) map[string]string {
	if svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	return svc.Spec.Selector
}

func (s *state) putService(object *corev1.Service) {
	svc := s.entry(api.KeyOf(object))
	old := selector(svc.object)
	svc.object = object
	if !equalMaps(old, selector(object)) {
		s.unselect(svc)
		s.selectAnew(svc)
	}
}

func (s *state) deleteService(key api.Key) {
	if svc := s.services[key]; svc != nil {
		s.unselect(svc)
		svc.object = nil
		s.drop(svc)
	}
}

func equalMaps(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if other, ok := b[k]; !ok || other != v {
			return false
		}
	}
	return true
}

func (s *state) unselect(svc *service) {
	for ep := range svc.endpoints {
		delete(ep.services, svc)
	}
	clear(svc.endpoints)
	if set := s.selecting[svc.indexed]; set != nil {
		delete(set, svc)
		if len(set) == 0 {
			delete(s.selecting, svc.indexed)
		}
	}
	svc.indexed = pair{}
}

// selectAnew finds the endpoints of a service whose selector is new. An empty
// selector selects nothing: such a service's slices are somebody else's work.
func (s *state) selectAnew(svc *service) {
	wanted := selector(svc.object)
	if len(wanted) == 0 {
		return
	}
	first := true
	for k, v := range wanted {
		p := pair{svc.key.Namespace, k, v}
		if first || len(s.selecting[p]) < len(s.selecting[svc.indexed]) {
			svc.indexed, first = p, false
		}
	}
	if s.selecting[svc.indexed] == nil {
		s.selecting[svc.indexed] = map[*service]struct{}{}
	}
	s.selecting[svc.indexed][svc] = struct{}{}
	for ep := range s.inSpace[svc.key.Namespace] {
		if matches(wanted, ep.labels) {
			join(svc, ep)
		}
	}
}

func matches(wanted, labels map[string]string) bool {
	for k, v := range wanted {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func join(svc *service, ep *endpoint) {
	svc.endpoints[ep] = struct{}{}
	ep.services[svc] = struct{}{}
}

// putEndpoint returns the services that the change concerns.
func (s *state) putEndpoint(object *api.WorkloadEndpoint) []api.Key {
	ep := newEndpoint(object)
	old := s.endpoints[ep.key]
	if old != nil && old.equal(ep) {
		return nil
	}
	concerned := s.deleteEndpoint(ep.key)
	s.endpoints[ep.key] = ep
	space := s.inSpace[ep.key.Namespace]
	if space == nil {
		space = map[*endpoint]struct{}{}
		s.inSpace[ep.key.Namespace] = space
	}
	space[ep] = struct{}{}
	for k, v := range ep.labels {
		for svc := range s.selecting[pair{ep.key.Namespace, k, v}] {
			if matches(selector(svc.object), ep.labels) {
				join(svc, ep)
				concerned = append(concerned, svc.key)
			}
		}
	}
	return concerned
}

func (s *state) deleteEndpoint(key api.Key) (concerned []api.Key) {
	ep := s.endpoints[key]
	if ep == nil {
		return nil
	}
	for svc := range ep.services {
		delete(svc.endpoints, ep)
		concerned = append(concerned, svc.key)
	}
	delete(s.endpoints, key)
	delete(s.inSpace[key.Namespace], ep)
	if len(s.inSpace[key.Namespace]) == 0 {
		delete(s.inSpace, key.Namespace)
	}
	return concerned
}

func newEndpoint(object *api.WorkloadEndpoint) *endpoint {
	ep := &endpoint{
		key:         api.KeyOf(object),
		labels:      object.Labels,
		node:        object.Spec.Node,
		pod:         object.Spec.Pod,
		ports:       object.Spec.Ports,
		ready:       object.Annotations[ReadyAnnotation] != "false",
		terminating: object.Annotations[TerminatingAnnotation] == "true",
		services:    map[*service]struct{}{},
	}
	if ep.pod == "" {
		ep.pod = ep.key.Name
	}
	for _, text := range object.Spec.IPNetworks {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			continue // others may have written it; it can't be reached
		}
		addr := prefix.Addr().Unmap()
		if i := slices.Index(families[:], familyOf(addr)); !ep.addresses[i].IsValid() {
			ep.addresses[i] = addr
		}
	}
	name := sha256.Sum256([]byte(ep.key.String()))
	ep.position = binary.BigEndian.Uint64(name[:8])
	for family := range families {
		for i, unreadyToo := range []bool{false, true} {
			ep.digests[family][i] = digestOf(ep.entry(family, unreadyToo))
		}
	}
	return ep
}

// equal compares all that services can see.
func (ep *endpoint) equal(o *endpoint) bool {
	return ep.digests == o.digests && equalMaps(ep.labels, o.labels) && slices.Equal(ep.ports, o.ports)
}

// putSlice returns the service that the change concerns: none if the slice is
// as it was written, or not ours.
func (s *state) putSlice(object *discoveryv1.EndpointSlice) []api.Key {
	key := api.KeyOf(object)
	record := recordOf(object)
	old, known := s.slices[key]
	if known && old == record {
		return nil
	}
	concerned := s.deleteSlice(key)
	s.recordSlice(key, record)
	if record.ours {
		concerned = append(concerned, record.owner)
	}
	return concerned
}

func recordOf(object *discoveryv1.EndpointSlice) sliceRecord {
	record := sliceRecord{version: object.ResourceVersion}
	if object.Labels[discoveryv1.LabelManagedBy] == Manager {
		record.ours = true
		record.owner = api.Key{Namespace: object.Namespace, Name: object.Labels[discoveryv1.LabelServiceName]}
		record.digest = digestOfSlice(object)
	}
	return record
}

func (s *state) recordSlice(key api.Key, record sliceRecord) {
	s.slices[key] = record
	if record.ours {
		s.entry(record.owner).slices[key.Name] = struct{}{}
	}
}

func (s *state) deleteSlice(key api.Key) (concerned []api.Key) {
	record, known := s.slices[key]
	delete(s.slices, key)
	if !known || !record.ours {
		return nil
	}
	if svc := s.services[record.owner]; svc != nil {
		delete(svc.slices, key.Name)
		s.drop(svc)
	}
	return []api.Key{record.owner}
}
