package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/policy"
)

// Local is a pod attached to this node, as the agent knows it.
type Local struct {
	Pod           api.Key
	UID           types.UID // of the Pod; empty outside Kubernetes
	ContainerID   string
	HostInterface string
	MAC           MAC // the pod end's
	MTU           int // of both ends; 0: what a new pod would get
	Addrs         []netip.Addr
	Labels        map[string]string
	Ports         []api.WorkloadEndpointPort
}

// podLabels is what the store may change about a pod of this node.
type podLabels struct {
	uid         types.UID
	containerID string // empty where the store does not know it: then the uid tells
	labels      map[string]string
	ports       []api.WorkloadEndpointPort
}

// isOf says whether these are the local pod's, and not those of its predecessor
// of the same name.
func (s podLabels) isOf(l Local) bool {
	if s.containerID == "" && l.UID != "" {
		return s.uid == l.UID
	}
	return s.containerID == l.ContainerID
}

// podPlanner plans what belongs to single pods: the host side of local ones, and
// who all of them are to policy. The local pods are those that the agent has
// attached, whatever the store says; the store can only change their labels.
type podPlanner struct {
	planner *Planner
	locals  map[string]Local      // by host interface
	stored  map[api.Key]podLabels // WorkloadEndpoints of this node
	dirty   map[string]struct{}   // host interfaces
	planned map[string]api.Key    // host interface → the endpoint's key in policy and services
	taken   map[string]string     // host interface → which of its addresses is reserved

	deviceUnits
}

// localPrefix begins the names of local pods' keys in policy and services. No
// name of an object may begin so.
const localPrefix = "@"

func newPodPlanner(pl *Planner, shared deviceUnits) *podPlanner {
	return &podPlanner{
		planner: pl,
		locals:  map[string]Local{}, stored: map[api.Key]podLabels{},
		dirty: map[string]struct{}{}, planned: map[string]api.Key{}, taken: map[string]string{},
		deviceUnits: shared,
	}
}

func (p *podPlanner) setLocal(l Local) {
	p.locals[l.HostInterface] = l
	p.dirty[l.HostInterface] = struct{}{}
}

func (p *podPlanner) deleteLocal(hostInterface string) {
	delete(p.locals, hostInterface)
	p.dirty[hostInterface] = struct{}{}
}

func (p *podPlanner) replanAll() {
	for name := range p.locals {
		p.dirty[name] = struct{}{}
	}
}

// put takes in a WorkloadEndpoint.
func (p *podPlanner) put(w *api.WorkloadEndpoint) error {
	key := api.KeyOf(w)
	if w.Spec.Node == p.planner.self {
		p.forgetRemote(key)
		p.stored[key] = podLabels{w.UID, w.Spec.ContainerID, w.Labels, w.Spec.Ports}
		p.dirtyPod(key)
		return nil
	}
	if _, ok := p.stored[key]; ok {
		delete(p.stored, key)
		p.dirtyPod(key)
	}
	e, err := policy.EndpointOf(w)
	if strings.HasPrefix(key.Name, localPrefix) {
		err = fmt.Errorf("a name can't begin with %q", localPrefix)
	}
	if err != nil {
		p.forgetRemote(key)
		return err
	}
	p.planner.policy.setEndpoint(key, e, "")
	return nil
}

// delete takes in that a WorkloadEndpoint is gone. A local pod stays while it
// is attached.
func (p *podPlanner) delete(key api.Key) {
	p.forgetRemote(key)
	if _, ok := p.stored[key]; ok {
		delete(p.stored, key)
		p.dirtyPod(key)
	}
}

// forgetRemote takes another node's pod out of policy, if it is there.
func (p *podPlanner) forgetRemote(key api.Key) {
	if !strings.HasPrefix(key.Name, localPrefix) {
		p.planner.policy.deleteEndpoint(key)
	}
}

func (p *podPlanner) dirtyPod(key api.Key) {
	for name, l := range p.locals {
		if l.Pod == key {
			p.dirty[name] = struct{}{}
		}
	}
}

// dirtyAddresses marks dirty the local pods that have one of the addresses.
func (p *podPlanner) dirtyAddresses(changed []netip.Addr) {
	for _, a := range changed {
		for name, l := range p.locals {
			if slices.Contains(l.Addrs, a) {
				p.dirty[name] = struct{}{}
			}
		}
	}
}

// overlapProblems lists the local pods that are not routed because a node, the
// default gateway or the store has their address.
func (p *podPlanner) overlapProblems() []Problem {
	var out []Problem
	for hostInterface, what := range p.taken {
		out = append(out, Problem{string(health.PoolOverlap), "pod " + p.locals[hostInterface].Pod.String(), what})
	}
	return out
}

func (p *podPlanner) flush() {
	for name := range p.dirty {
		p.planLocal(name)
	}
	clear(p.dirty)
}

// forgetEndpoint takes what is behind a host interface out of policy and
// services.
func (p *podPlanner) forgetEndpoint(hostInterface string) {
	if key, ok := p.planned[hostInterface]; ok {
		delete(p.planned, hostInterface)
		p.planner.policy.deleteEndpoint(key)
		p.planner.services.deleteLocalPod(key)
	}
}

func (p *podPlanner) planLocal(hostInterface string) {
	unit := podUnit(hostInterface)
	delete(p.taken, hostInterface)
	l, ok := p.locals[hostInterface]
	if !ok {
		p.links.replace(unit, nil)
		p.addresses.replace(unit, nil)
		p.neighbours.replace(unit, nil)
		p.routes.replace(unit, nil)
		p.sysctls.replace(unit, nil)
		p.forgetEndpoint(hostInterface)
		return
	}
	if s, ok := p.stored[l.Pod]; ok && s.isOf(l) {
		l.Labels, l.Ports = s.labels, s.ports
	}

	underlay := p.planner.fabric.self.Underlay
	neighbours := map[NeighbourKey]MAC{}
	routes := map[netip.Prefix]Route{}
	addresses := map[AddressKey]struct{}{}
	sysctls := map[string]string{}
	for _, a := range l.Addrs {
		if what, reserved := p.planner.fabric.reserved.holds(a); reserved {
			p.taken[hostInterface] = fmt.Sprintf("no route to its address %s, which is %s", a, what)
			continue
		}
		r := Route{Link: l.HostInterface}
		r.Source, _ = underlay.Addr(a.Is6())
		routes[netip.PrefixFrom(a, a.BitLen())] = r
		neighbours[NeighbourKey{l.HostInterface, a}] = l.MAC
		if a.Is6() {
			addresses[AddressKey{l.HostInterface, netip.PrefixFrom(netip.MustParseAddr(PodGateway6), 64)}] = struct{}{}
		} else {
			// Answers a pod whose permanent entry for the next hop was flushed.
			sysctls["net/ipv4/conf/"+l.HostInterface+"/proxy_arp"] = "1"
		}
	}
	if slices.ContainsFunc(hostPorts(l.Ports), HostPort.onLoopback4) {
		// Else packets between a loopback address and the link are martians.
		sysctls["net/ipv4/conf/"+l.HostInterface+"/route_localnet"] = "1"
	}
	mac, _ := ParseMAC(PodGatewayMAC)
	// Both ends keep the MTU with which the pod was attached: veth silently drops
	// what is larger than the other end's, while a smaller one further on is
	// told to the sender (RFC 1191).
	mtu := l.MTU
	if mtu == 0 {
		mtu = p.planner.PodMTU()
	}
	p.links.replace(unit, map[string]Link{l.HostInterface: {Kind: LinkVeth, MTU: mtu, MAC: mac}})
	p.neighbours.replace(unit, neighbours)
	p.routes.replace(unit, routes)
	p.addresses.replace(unit, addresses)
	p.sysctls.replace(unit, sysctls)

	// Two attachments of a pod of one name, an old one that is going and its
	// successor, are two endpoints.
	key := api.Key{Namespace: l.Pod.Namespace, Name: localPrefix + l.HostInterface}
	if p.planned[hostInterface] != key { // it is known only now whose it is
		p.forgetEndpoint(hostInterface)
	}
	p.planned[hostInterface] = key
	// Ports that can't be understood were refused when the pod was attached.
	ports, _ := policy.NamedPorts(l.Ports)
	p.planner.policy.setEndpoint(key, policy.Endpoint{
		Key: key, Labels: l.Labels, Addrs: l.Addrs, Ports: ports, Local: true,
	}, l.HostInterface)
	p.planner.services.setLocalPod(key, l.Pod, l.Addrs, hostPorts(l.Ports))
}
