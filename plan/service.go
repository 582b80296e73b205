package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/service"
)

// servicePlanner plans what balances Services and host ports: a constant number
// of chains and maps, with a few rows for each front end and each of its
// backends. A change plans the Services that it concerns, and no other.
type servicePlanner struct {
	plan  *Plan
	local service.Local
	cpus  int64 // of the node; 0: not known yet
	off   bool  // Services are somebody else's; host ports are not

	sources sources

	services map[api.Key]*service.Service
	slices   map[api.Key][]*service.Slice // by Service
	sliceOf  map[api.Key]api.Key          // EndpointSlice → its Service
	pods     map[api.Key]localPod         // pods attached to this node
	podAddrs holders[netip.Addr]

	dirty  map[owner]struct{}
	faults map[owner][]string

	// Who has which front end, who would like to have it, and what is in the
	// tables for it.
	placed map[frontendKey]*placement
	held   map[owner][]frontendKey
	rivals map[frontendKey]map[owner]struct{}
	lost   map[owner][]frontendKey

	balancers  map[balancer]*balancerUse
	clusterIPs holders[netip.Addr]

	healthChecks *units[netip.AddrPort, HealthCheck]

	ranges       []netip.Prefix // of cluster IPs
	hostNetworks []netip.Prefix // that the host reaches by routes of its own
	rangeRows    *units[ElementKey, Element]
}

// HostPort is a port of a node that is led to a pod on it.
type HostPort struct {
	HostIP   netip.Addr // zero: every local address; unspecified: every one of its family
	Protocol uint8      // IP protocol number
	HostPort uint16
	Port     uint16 // of the pod
}

// hostPorts picks the host ports out of a pod's ports. Those that make no sense
// were refused when the pod was attached.
func hostPorts(ports []api.WorkloadEndpointPort) []HostPort {
	var out []HostPort
	for _, p := range ports {
		protocol, ok := service.ParseProtocol(p.Protocol)
		if p.HostPort == 0 || !ok {
			continue
		}
		hostIP, _ := netip.ParseAddr(p.HostIP)
		out = append(out, HostPort{hostIP.Unmap(), protocol, uint16(p.HostPort), uint16(p.Port)})
	}
	return out
}

// everywhere says whether a host port is on every local address of a family.
func (p HostPort) everywhere(is4 bool) bool {
	return !p.HostIP.IsValid() || p.HostIP.IsUnspecified() && p.HostIP.Is4() == is4
}

// onLoopback4 says whether a host port is on an address of 127.0.0.0/8.
func (p HostPort) onLoopback4() bool {
	return p.everywhere(true) || p.HostIP.Is4() && p.HostIP.IsLoopback()
}

type localPod struct {
	name      api.Key // of the pod; several attachments may have the same
	addrs     []netip.Addr
	hostPorts []HostPort
}

// owner is who asks for front ends: a Service, or a pod with host ports.
type owner struct {
	pod bool
	key api.Key
}

// newServicePlanner returns a planner for the named node, after asking for all
// chains, sets and maps that do not depend on intent.
func newServicePlanner(p *Plan, nodeName string) *servicePlanner {
	planServiceChains(p)
	planConntrack(p, 0, false)
	return &servicePlanner{
		plan: p, local: service.Local{Node: nodeName},
		services: map[api.Key]*service.Service{}, slices: map[api.Key][]*service.Slice{}, sliceOf: map[api.Key]api.Key{},
		pods: map[api.Key]localPod{}, podAddrs: holders[netip.Addr]{},
		dirty: map[owner]struct{}{}, faults: map[owner][]string{},
		placed: map[frontendKey]*placement{}, held: map[owner][]frontendKey{},
		rivals: map[frontendKey]map[owner]struct{}{}, lost: map[owner][]frontendKey{},
		balancers: map[balancer]*balancerUse{}, clusterIPs: holders[netip.Addr]{},
		healthChecks: newUnits(p.HealthChecks),
		rangeRows:    newUnits(p.Elements),
	}
}

// setNode says where the node is, how many CPUs it has, and the addresses on
// which it serves node ports and host ports.
func (s *servicePlanner) setNode(zone string, cpus int64, nodeAddrs []netip.Addr) {
	s.cpus = cpus
	planConntrack(s.plan, cpus, s.off)
	if s.local.Zone == zone && slices.Equal(s.local.Addrs, nodeAddrs) {
		return
	}
	s.local.Zone, s.local.Addrs = zone, slices.Clone(nodeAddrs)
	s.replanAll()
}

// setOff leaves Services to another program on this node, or no longer. They are
// kept, so that they can be taken over at any time.
func (s *servicePlanner) setOff(off bool) {
	if s.off == off {
		return
	}
	s.off = off
	planServiceMasquerade(s.plan, off)
	planConntrack(s.plan, s.cpus, off)
	s.planRanges()
	s.replanAll()
}

// setRanges sets the ranges of cluster IPs, none at first. Packets to an address in
// them that no Service has are dropped: they would leave the node by its default
// route, in clear text for clients that still talk to a Service just deleted.
func (s *servicePlanner) setRanges(ranges []netip.Prefix) {
	s.ranges = slices.Clone(ranges)
	s.planRanges()
}

// setHostNetworks sets the networks that the host reaches by routes of its own;
// packets to them are never dropped.
func (s *servicePlanner) setHostNetworks(networks []netip.Prefix) {
	s.hostNetworks = networks
	s.planRanges()
}

func (s *servicePlanner) planRanges() {
	if s.off {
		s.rangeRows.replace("", nil)
		return
	}
	var b netipx.IPSetBuilder
	for _, p := range s.ranges {
		b.AddPrefix(p)
	}
	for _, p := range s.hostNetworks {
		b.RemovePrefix(p)
	}
	set, err := b.IPSet()
	if err != nil {
		return // only invalid prefixes make an error, and there are none
	}
	s.rangeRows.replace("", rangeElements("service-cidrs", set.Prefixes()))
}

// setExternalIPRanges says in which ranges Services may take external IPs. At
// first there are none.
func (s *servicePlanner) setExternalIPRanges(ranges []netip.Prefix) {
	s.local.ExternalIPs = slices.Clone(ranges)
	s.replanAll()
}

func (s *servicePlanner) replanAll() {
	for key := range s.services {
		s.dirty[owner{key: key}] = struct{}{}
	}
	for key, pod := range s.pods {
		if len(pod.hostPorts) > 0 {
			s.dirty[owner{pod: true, key: key}] = struct{}{}
		}
	}
}

func (s *servicePlanner) setService(svc *corev1.Service) {
	key := api.KeyOf(svc)
	if parsed := service.Parse(svc); parsed != nil {
		s.services[key] = parsed
	} else {
		delete(s.services, key)
	}
	s.dirty[owner{key: key}] = struct{}{}
}

func (s *servicePlanner) deleteService(key api.Key) {
	delete(s.services, key)
	s.dirty[owner{key: key}] = struct{}{}
}

func (s *servicePlanner) setEndpointSlice(es *discoveryv1.EndpointSlice) {
	s.replaceSlice(api.KeyOf(es), service.ParseSlice(es))
}

func (s *servicePlanner) deleteEndpointSlice(key api.Key) { s.replaceSlice(key, nil) }

func (s *servicePlanner) replaceSlice(key api.Key, slice *service.Slice) {
	if of, ok := s.sliceOf[key]; ok {
		rest := slices.DeleteFunc(s.slices[of], func(old *service.Slice) bool { return old.Key == key })
		if len(rest) > 0 {
			s.slices[of] = rest
		} else {
			delete(s.slices, of)
		}
		delete(s.sliceOf, key)
		s.dirty[owner{key: of}] = struct{}{}
	}
	if slice != nil {
		s.slices[slice.Service] = append(s.slices[slice.Service], slice)
		s.sliceOf[key] = slice.Service
		s.dirty[owner{key: slice.Service}] = struct{}{}
	}
}

// setLocalPod takes in a pod that is attached to this node, under a key that
// tells attachments apart.
func (s *servicePlanner) setLocalPod(key, name api.Key, addrs []netip.Addr, hostPorts []HostPort) {
	old := s.pods[key]
	s.pods[key] = localPod{name, slices.Clone(addrs), slices.Clone(hostPorts)}
	s.replacePodAddrs(old.addrs, addrs)
	if old.name != name {
		for _, k := range s.held[owner{pod: true, key: key}] {
			s.dirtyRivals(k) // who lost to it is told of it by its name
		}
	}
	s.dirty[owner{pod: true, key: key}] = struct{}{}
}

func (s *servicePlanner) deleteLocalPod(key api.Key) {
	old := s.pods[key]
	delete(s.pods, key)
	s.replacePodAddrs(old.addrs, nil)
	s.dirty[owner{pod: true, key: key}] = struct{}{}
}

// replacePodAddrs counts, because an old attachment that is going and its
// successor may have the same address.
func (s *servicePlanner) replacePodAddrs(old, addrs []netip.Addr) {
	for _, a := range addrs {
		if s.podAddrs.hold(a) {
			n := serviceNamesOf(a)
			s.plan.Elements.Set(ElementKey{n.localPods, KeyOf(a)}, Element{})
			s.plan.Elements.Set(ElementKey{n.hairpin, KeyOf(a, a)}, Element{})
		}
	}
	for _, a := range old {
		if s.podAddrs.release(a) {
			n := serviceNamesOf(a)
			s.plan.Elements.Delete(ElementKey{n.localPods, KeyOf(a)})
			s.plan.Elements.Delete(ElementKey{n.hairpin, KeyOf(a, a)})
		}
	}
}

// planHealthCheck has load balancers answered for a Service that wants it.
func (s *servicePlanner) planHealthCheck(key api.Key) {
	checks := map[netip.AddrPort]HealthCheck{}
	if svc := s.services[key]; svc != nil && !s.off {
		for at, n := range svc.HealthChecks(s.slices[key], s.local) {
			checks[at] = HealthCheck{Service: key, LocalEndpoints: n}
		}
	}
	s.healthChecks.replace(key.String(), checks)
}

// flush plans what changed.
func (s *servicePlanner) flush() {
	// Giving a front end up or taking it over dirties those who claim it too.
	for len(s.dirty) > 0 {
		for o := range s.dirty {
			delete(s.dirty, o)
			s.replan(o)
			if !o.pod {
				s.planHealthCheck(o.key)
			}
		}
	}
}

// wanted computes the front ends that an owner asks for.
func (s *servicePlanner) wanted(o owner) (frontends []service.Frontend, faults []string) {
	if o.pod {
		return s.hostPortFrontends(s.pods[o.key])
	}
	svc, ok := s.services[o.key]
	if !ok || s.off {
		return nil, nil
	}
	frontends, faults = svc.Frontends(s.slices[o.key], s.local)
	return frontends, append(faults, svc.Problems...)
}

func (s *servicePlanner) hostPortFrontends(pod localPod) (out []service.Frontend, faults []string) {
	for _, hp := range pod.hostPorts {
		if hp.HostIP.Is6() && hp.HostIP.IsLoopback() {
			faults = append(faults, fmt.Sprintf("host port %d on %s: the kernel leads no packets to IPv6 loopback addresses elsewhere; leave hostIP empty", hp.HostPort, hp.HostIP))
			continue
		}
		for _, a := range pod.addrs {
			for _, host := range s.hostPortAddrs(hp, a.Is4()) {
				to := []netip.AddrPort{netip.AddrPortFrom(a, hp.Port)}
				out = append(out, service.Frontend{
					Class: service.HostPort, Addr: host, Protocol: hp.Protocol, Port: hp.HostPort,
					Backends: to, Local: true, LocalBackends: to, Serving: to,
				})
			}
		}
	}
	return out, faults
}

// hostPortAddrs are the addresses of a family that a host port is on. The unspecified
// one stands for every local address. The node's own are named, too: there NodePorts of
// Services come first, and UDP connections are followed.
func (s *servicePlanner) hostPortAddrs(hp HostPort, is4 bool) []netip.Addr {
	other := func(a netip.Addr) bool { return a.Is4() != is4 }
	if !hp.everywhere(is4) {
		return slices.DeleteFunc([]netip.Addr{hp.HostIP}, other)
	}
	all := netip.IPv6Unspecified()
	if is4 {
		all = netip.IPv4Unspecified()
	}
	return append(slices.DeleteFunc(slices.Clone(s.local.Addrs), other), all)
}

// problems lists what Services and host ports ask for and don't get.
func (s *servicePlanner) problems() []Problem {
	var out []Problem
	for o, faults := range s.faults {
		out = append(out, Problem{string(health.ServiceNotProgrammed), s.title(o), strings.Join(faults, "; ")})
	}
	slices.SortFunc(out, func(a, b Problem) int { return cmp.Compare(a.Subject, b.Subject) })
	return out
}

// title names an owner for people: a pod's key has its device for a name.
func (s *servicePlanner) title(o owner) string {
	if o.pod {
		return "host ports of pod " + s.pods[o.key].name.String()
	}
	return o.key.String()
}

// holders counts who holds each key.
type holders[K comparable] map[K]int

// hold says whether this is the first who holds k.
func (h holders[K]) hold(k K) bool {
	h[k]++
	return h[k] == 1
}

// release says whether this was the last who held k.
func (h holders[K]) release(k K) bool {
	h[k]--
	if h[k] > 0 {
		return false
	}
	delete(h, k)
	return true
}
