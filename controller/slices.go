package controller

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// endpointsInSlice is how many endpoints a slice holds at most, as in
// Kubernetes.
const endpointsInSlice = 100

// digest stands for content that need not be kept. Digests of a slice's parts
// add up, so that one endpoint's change needs no look at the others.
type digest [2]uint64

func (d digest) plus(o digest) digest { return digest{d[0] + o[0], d[1] + o[1]} }

func digestOf(v any) digest {
	text, err := json.Marshal(v)
	if err != nil {
		// Can't happen for the API's plain structs; a digest that nothing has
		// makes the slice be written again.
		return digest{}
	}
	sum := sha256.Sum256(text)
	return digest{binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])}
}

// frame is a slice without its endpoints: those with another frame need another
// slice.
type frame struct {
	Family corev1.IPFamily
	Ports  []discoveryv1.EndpointPort
}

func digestOfSlice(object *discoveryv1.EndpointSlice) digest {
	d := digestOf(frame{corev1.IPFamily(object.AddressType), object.Ports})
	for i := range object.Endpoints {
		d = d.plus(digestOf(&object.Endpoints[i]))
	}
	return d
}

// entry is the endpoint as it stands in a slice of the family. The service may
// want unready ones as if they were ready.
func (ep *endpoint) entry(family int, unreadyToo bool) *discoveryv1.Endpoint {
	e := &discoveryv1.Endpoint{
		Addresses: []string{ep.addresses[family].String()},
		Conditions: discoveryv1.EndpointConditions{
			Ready:       new(ep.ready && !ep.terminating || unreadyToo),
			Serving:     new(ep.ready),
			Terminating: new(ep.terminating),
		},
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ep.key.Namespace, Name: ep.pod},
	}
	if ep.node != "" {
		e.NodeName = &ep.node
	}
	return e
}

// plannedSlice is a slice that a service should have.
type plannedSlice struct {
	frame     frame
	family    int
	identity  string // what its name is made of
	endpoints []*endpoint
	digest    digest
}

// planSlices divides the service's endpoints into slices. The result depends on
// the endpoints and on nothing else, and one endpoint changes one slice, or the
// few that it makes split or join.
func (r ranges) planSlices(svc *service) []plannedSlice {
	if len(selector(svc.object)) == 0 {
		return nil
	}
	spec := &svc.object.Spec
	unreadyToo := 0
	if spec.PublishNotReadyAddresses {
		unreadyToo = 1
	}
	_, wanted := r.families(spec)
	var planned []plannedSlice
	for family, name := range families {
		if !slices.Contains(wanted, name) {
			continue
		}
		for _, group := range groupByPorts(spec.Ports, svc.endpoints, family) {
			f := frame{name, group.ports}
			base := digestOf(f)
			// Endpoints of one set of ports lie in a tree by their position's
			// bits; a node of the tree that fits into a slice is one.
			slices.SortFunc(group.endpoints, func(a, b *endpoint) int { return cmp.Compare(a.position, b.position) })
			divide(group.endpoints, 0, func(leaf string, endpoints []*endpoint) {
				d := base
				for _, ep := range endpoints {
					d = d.plus(ep.digests[family][unreadyToo])
				}
				planned = append(planned, plannedSlice{f, family, fmt.Sprintf("%x/%s", base, leaf), endpoints, d})
			})
		}
	}
	return planned
}

// divide calls found for each leaf, named by the bits that its endpoints share.
func divide(endpoints []*endpoint, bit int, found func(leaf string, endpoints []*endpoint)) {
	switch {
	case len(endpoints) == 0:
	case len(endpoints) <= endpointsInSlice || bit == 63:
		found(fmt.Sprintf("%d/%x", bit, endpoints[0].position>>(63-bit)>>1), endpoints)
	default:
		mask := uint64(1) << (63 - bit)
		half, _ := slices.BinarySearchFunc(endpoints, mask, func(ep *endpoint, mask uint64) int {
			return cmp.Compare(ep.position&mask, mask)
		})
		divide(endpoints[:half], bit+1, found)
		divide(endpoints[half:], bit+1, found)
	}
}

type group struct {
	ports     []discoveryv1.EndpointPort
	endpoints []*endpoint
}

// groupByPorts puts endpoints together for which the service's ports mean the
// same numbers: a named target port may be another on each pod. A service
// without ports, which only a headless one can be, has endpoints all the same;
// an endpoint that has none of the ports is left out.
func groupByPorts(ports []corev1.ServicePort, endpoints map[*endpoint]struct{}, family int) map[string]*group {
	groups := map[string]*group{}
	numbers := make([]int32, len(ports))
	var name []byte
	for ep := range endpoints {
		if !ep.addresses[family].IsValid() {
			continue
		}
		name = name[:0]
		resolved := 0
		for i := range ports {
			numbers[i] = ep.resolve(&ports[i])
			if numbers[i] != 0 {
				resolved++
			}
			name = binary.BigEndian.AppendUint32(name, uint32(numbers[i]))
		}
		if resolved == 0 && len(ports) > 0 {
			continue
		}
		g := groups[string(name)]
		if g == nil {
			g = &group{ports: endpointPorts(ports, numbers)}
			groups[string(name)] = g
		}
		g.endpoints = append(g.endpoints, ep)
	}
	return groups
}

// resolve is the number of the service's port on the endpoint; 0: it has none.
func (ep *endpoint) resolve(p *corev1.ServicePort) int32 {
	if p.TargetPort.Type == intstr.Int {
		if p.TargetPort.IntVal == 0 {
			return p.Port
		}
		return p.TargetPort.IntVal
	}
	for _, own := range ep.ports {
		if own.Name == p.TargetPort.StrVal && protocolOr(own.Protocol) == protocolOr(p.Protocol) {
			return own.Port
		}
	}
	return 0
}

func protocolOr(p corev1.Protocol) corev1.Protocol {
	return cmp.Or(p, corev1.ProtocolTCP)
}

func endpointPorts(ports []corev1.ServicePort, numbers []int32) []discoveryv1.EndpointPort {
	out := []discoveryv1.EndpointPort{}
	for i, p := range ports {
		if numbers[i] != 0 {
			out = append(out, discoveryv1.EndpointPort{
				Name: new(p.Name), Protocol: new(protocolOr(p.Protocol)), Port: new(numbers[i]), AppProtocol: p.AppProtocol,
			})
		}
	}
	return out
}

// sliceWork is what must be written for one service.
type sliceWork struct {
	write  []*discoveryv1.EndpointSlice // with resourceVersion: replace
	delete map[string]string            // name → resourceVersion
}

// compareSlices finds the difference between what the service should have and
// what the store has.
func (r *reconciler) compareSlices(key api.Key) sliceWork {
	r.mu.Lock()
	defer r.mu.Unlock()
	work := sliceWork{delete: map[string]string{}}
	svc := r.state.services[key]
	if svc == nil {
		return work
	}
	for name := range svc.slices {
		work.delete[name] = r.state.slices[api.Key{Namespace: key.Namespace, Name: name}].version
	}
	planned := r.allocator.planSlices(svc)
	// Where two names collide, the first by identity has it.
	slices.SortFunc(planned, func(a, b plannedSlice) int { return cmp.Compare(a.identity, b.identity) })
	taken := map[string]bool{}
	for _, p := range planned {
		name := r.state.nameSlice(key, p.identity, taken)
		taken[name] = true
		delete(work.delete, name)
		record := r.state.slices[api.Key{Namespace: key.Namespace, Name: name}]
		if record.version == "" || record.digest != p.digest {
			work.write = append(work.write, p.object(svc, name, record.version))
		}
	}
	return work
}

// nameSlice is the service's name and five digits of a hash. A name that another
// slice of the service has, or one that is not of this service, is passed over.
func (s *state) nameSlice(service api.Key, identity string, taken map[string]bool) string {
	for salt := 0; ; salt++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", service, identity, salt))
		name := service.Name + "-" + hex.EncodeToString(sum[:3])[:5]
		record, exists := s.slices[api.Key{Namespace: service.Namespace, Name: name}]
		if !taken[name] && (!exists || record.ours && record.owner == service) {
			return name
		}
	}
}

func (p *plannedSlice) object(svc *service, name, version string) *discoveryv1.EndpointSlice {
	object := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       svc.key.Namespace,
			Name:            name,
			ResourceVersion: version,
			Labels: map[string]string{
				discoveryv1.LabelServiceName: svc.key.Name,
				discoveryv1.LabelManagedBy:   Manager,
			},
		},
		AddressType: discoveryv1.AddressType(p.frame.Family),
		Ports:       p.frame.Ports,
	}
	if svc.object.Spec.ClusterIP == corev1.ClusterIPNone {
		object.Labels[corev1.IsHeadlessService] = ""
	}
	unreadyToo := svc.object.Spec.PublishNotReadyAddresses
	slices.SortFunc(p.endpoints, func(a, b *endpoint) int {
		return cmp.Or(a.addresses[p.family].Compare(b.addresses[p.family]), cmp.Compare(a.key.Name, b.key.Name))
	})
	for _, ep := range p.endpoints {
		object.Endpoints = append(object.Endpoints, *ep.entry(p.family, unreadyToo))
	}
	return object
}

// reconcileSlices writes what differs. New ones come before old ones go, so that
// an endpoint that moves between slices is always in one.
func (r *reconciler) reconcileSlices(ctx context.Context, key api.Key) error {
	work := r.compareSlices(key)
	for _, object := range work.write {
		if err := r.writeSlice(ctx, object); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(work.delete)) {
		slice := api.Key{Namespace: key.Namespace, Name: name}
		err := r.store.Delete(ctx, api.EndpointSliceKind, slice, work.delete[name])
		if errors.Is(err, store.ErrConflict) {
			return r.lookAgain(ctx, slice, err)
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		r.mu.Lock()
		r.state.deleteSlice(slice)
		r.mu.Unlock()
	}
	return nil
}

func (r *reconciler) writeSlice(ctx context.Context, object *discoveryv1.EndpointSlice) error {
	var stored api.Object
	var err error
	if object.ResourceVersion == "" {
		stored, err = r.store.Create(ctx, object)
	} else {
		stored, err = r.store.Update(ctx, object)
	}
	if err != nil {
		return r.lookAgain(ctx, api.KeyOf(object), err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.putSlice(stored.(*discoveryv1.EndpointSlice))
	return nil
}

// lookAgain corrects what is known of a slice after a write was refused: the
// watch may be behind. It returns why, for the work is not done.
func (r *reconciler) lookAgain(ctx context.Context, key api.Key, why error) error {
	stored, err := r.store.Get(ctx, api.EndpointSliceKind, key)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.state.putSlice(stored.(*discoveryv1.EndpointSlice))
	case errors.Is(err, store.ErrNotFound):
		r.state.deleteSlice(key)
	}
	return why
}
