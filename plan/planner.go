package plan

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
)

// Planner keeps one node's plan in step with intent. Tell it what changed, then
// Flush: only what depends on the change is planned again. It is for one
// goroutine.
type Planner struct {
	plan *Plan
	self string

	fabric   *fabricPlanner
	policy   *policyPlanner
	services *servicePlanner
	pods     *podPlanner

	rejected map[string]string // kind/key → why the object was not understood
}

// NewPlanner returns a planner for the named node. Nothing leaves the node until
// SetUnderlay says how it is connected.
func NewPlanner(node string) *Planner {
	p := New()
	planBase(p)
	shared := newDeviceUnits(p)
	pl := &Planner{
		plan: p, self: node,
		fabric:   newFabricPlanner(p, shared, node),
		policy:   newPolicyPlanner(p),
		services: newServicePlanner(p, node),
		rejected: map[string]string{},
	}
	pl.pods = newPodPlanner(pl, shared)
	return pl
}

// SetUnderlay says how the node is connected to the others.
func (pl *Planner) SetUnderlay(u fabric.Underlay) {
	pl.fabric.setUnderlay(u)
	pl.services.setUnderlay(u)
	pl.services.setHostNetworks(pl.fabric.reserved.networks())
	pl.pods.replanAll()
}

// SetReserved replaces the prefixes that the host needs for itself. A block that
// would lead their packets away gets no route, and is listed among the Problems.
// The addresses of all nodes, and the networks of the underlay's addresses, are
// reserved without being given here.
func (pl *Planner) SetReserved(r []Reserved) {
	pl.fabric.setReserved(slices.Clone(r))
	pl.services.setHostNetworks(pl.fabric.reserved.networks())
	pl.pods.replanAll()
}

// Put takes in a new or changed object. The object is not kept and not changed.
// An object that can't be understood counts as absent and is listed among the
// Problems: the API refuses such objects, so somebody wrote past it.
func (pl *Planner) Put(obj api.Object) {
	if err := pl.put(obj); err != nil {
		pl.rejected[rejectedKey(api.KindOf(obj), api.KeyOf(obj))] = err.Error()
		return
	}
	if kind := api.KindOf(obj); kind != nil {
		delete(pl.rejected, rejectedKey(kind, api.KeyOf(obj)))
	}
}

func rejectedKey(kind *api.Kind, key api.Key) string { return kind.Name + " " + key.String() }

func (pl *Planner) put(obj api.Object) error {
	switch o := obj.(type) {
	case *corev1.Namespace:
		pl.policy.setNamespace(o.Name, o.Labels)
	case *corev1.Node:
		return pl.putNode(o)
	case *api.FabricConfiguration:
		if o.Name == api.FabricConfigurationName {
			pl.fabric.setConfig(o)
			pl.pods.replanAll()
		}
	case *api.IPPool:
		defer pl.pods.replanAll() // their MTU may depend on it
		return pl.fabric.setPool(o)
	case *api.IPAMBlock:
		return pl.fabric.setBlock(o)
	case *api.WorkloadEndpoint:
		return pl.pods.put(o)
	case *corev1.Service:
		pl.services.setService(o)
	case *discoveryv1.EndpointSlice:
		pl.services.setEndpointSlice(o)
	case *networkingv1.NetworkPolicy:
		return pl.policy.setPolicy(o)
	default:
		return nil // a kind of which no node needs anything
	}
	return nil
}

func (pl *Planner) putNode(n *corev1.Node) error {
	addrs := api.NodeAddresses(n)
	if n.Name == pl.self {
		pl.services.setNode(n.Labels[corev1.LabelTopologyZone], n.Status.Capacity.Cpu().Value(), addrs)
	}
	receives, err := api.NodeReceives(n)
	pl.pods.dirtyAddresses(pl.fabric.setPeer(fabric.Peer{
		Name: n.Name, Addrs: addrs, Receives: receives,
		Claim: api.NodeAddressClaim(n), Created: n.CreationTimestamp.Time,
	}))
	return err
}

// Delete takes in that an object is gone.
func (pl *Planner) Delete(kind *api.Kind, key api.Key) {
	delete(pl.rejected, rejectedKey(kind, key))
	switch kind {
	case api.NamespaceKind:
		pl.policy.deleteNamespace(key.Name)
	case api.NodeKind:
		pl.pods.dirtyAddresses(pl.fabric.deletePeer(key.Name))
		if key.Name == pl.self {
			pl.services.setNode("", 0, nil)
		}
	case api.FabricConfigurationKind:
		if key.Name == api.FabricConfigurationName {
			pl.fabric.setConfig(nil)
			pl.pods.replanAll()
		}
	case api.IPPoolKind:
		pl.fabric.deletePool(key.Name)
		pl.pods.replanAll()
	case api.IPAMBlockKind:
		pl.fabric.deleteBlock(key.Name)
	case api.WorkloadEndpointKind:
		pl.pods.delete(key)
	case api.ServiceKind:
		pl.services.deleteService(key)
	case api.EndpointSliceKind:
		pl.services.deleteEndpointSlice(key)
	case api.NetworkPolicyKind:
		pl.policy.deletePolicy(key)
	}
}

// SetExternalIPRanges says in which ranges Services may take external IPs; none
// at first.
func (pl *Planner) SetExternalIPRanges(ranges []netip.Prefix) {
	pl.services.setExternalIPRanges(ranges)
}

// SetServiceRanges sets the ranges of which Services get cluster IPs, none at first.
// Packets to addresses in them that no Service has are dropped, but for those of
// nodes, pools and the host's own networks.
func (pl *Planner) SetServiceRanges(ranges []netip.Prefix) { pl.services.setRanges(ranges) }

// SetServices says whether the node is to serve Services, as it is at first; if
// not, another program on it does. Host ports are served either way.
func (pl *Planner) SetServices(on bool) { pl.services.setOff(!on) }

// SetLocal takes in a pod that is attached to this node.
func (pl *Planner) SetLocal(l Local) { pl.pods.setLocal(l) }

// DeleteLocal takes in that the pod behind the host interface is detached.
func (pl *Planner) DeleteLocal(hostInterface string) { pl.pods.deleteLocal(hostInterface) }

// RemotePods lists the pods of other nodes that have an address in a prefix, each
// with all its addresses. It costs as much as the prefix has addresses.
func (pl *Planner) RemotePods(prefix netip.Prefix) iter.Seq2[api.Key, []netip.Addr] {
	return func(yield func(api.Key, []netip.Addr) bool) {
		for key, addrs := range pl.policy.compiler.Within(prefix) {
			if !strings.HasPrefix(key.Name, localPrefix) && !yield(key, addrs) {
				return
			}
		}
	}
}

// PodMTU is the MTU for pods of this node.
func (pl *Planner) PodMTU() int { return pl.fabric.podMTU() }

// Nodes is how many nodes the cluster has, this one included.
func (pl *Planner) Nodes() int { return len(pl.fabric.peers) }

// Tunnels are the UDP ports on which the node receives tunnels, as of the last
// Flush.
func (pl *Planner) Tunnels() []uint16 { return slices.Clone(pl.fabric.tunnels) }

// Receives is what the node can receive, to be published.
func (pl *Planner) Receives() api.Receives {
	return fabric.Receives(pl.fabric.self, pl.fabric.config)
}

// Flush plans what changed and returns the plan, which stays the planner's: the
// next call of any method changes it.
func (pl *Planner) Flush() *Plan {
	pl.fabric.flush()
	pl.pods.flush()
	pl.policy.flush()
	pl.services.flush()
	return pl.plan
}

// Problem is something in the intent that the plan can't honour.
type Problem struct {
	Code    string // of package health
	Subject string // the object
	Detail  string
}

// Problems lists what the plan can't honour, sorted.
func (pl *Planner) Problems() []Problem {
	var out []Problem
	for subject, detail := range pl.rejected {
		out = append(out, Problem{"ObjectInvalid", subject, detail})
	}
	for peer, detail := range pl.fabric.problems {
		out = append(out, Problem{"NoPathToNode", peer, detail})
	}
	out = append(out, pl.fabric.overlapProblems()...)
	out = append(out, pl.pods.overlapProblems()...)
	out = append(out, pl.services.problems()...)
	slices.SortFunc(out, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Detail, b.Detail))
	})
	return out
}

// LocalRulesPending says whether something of the policy of the pod behind the
// host interface is not in the kernel yet.
func (pl *Planner) LocalRulesPending(hostInterface string) bool {
	for _, dispatch := range []string{mapFromPod, mapToPod, setIsolatedFrom, setIsolatedTo} {
		if pl.plan.Elements.IsDirty(ElementKey{dispatch, KeyOf(hostInterface)}) {
			return true
		}
	}
	return false
}

// LocalPending says whether something of the pod behind the host interface is
// not in the kernel yet.
func (pl *Planner) LocalPending(hostInterface string) bool {
	if _, dirty := pl.pods.dirty[hostInterface]; dirty || pl.LocalRulesPending(hostInterface) || pl.plan.Links.IsDirty(hostInterface) {
		return true
	}
	for _, a := range pl.pods.locals[hostInterface].Addrs {
		if pl.plan.Routes.IsDirty(netip.PrefixFrom(a, a.BitLen())) || pl.plan.Neighbours.IsDirty(NeighbourKey{hostInterface, a}) {
			return true
		}
	}
	return false
}
