package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/dataplane/conntrack"
	"github.com/twill-net/twill/dataplane/pod"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/plan"
)

// podMAC is the address that the runtime asks for, or one made from the
// container's id: locally administered and unicast.
func podMAC(att cni.Attachment) (plan.MAC, error) {
	if att.MAC != "" {
		return plan.ParseMAC(att.MAC)
	}
	sum := sha256.Sum256([]byte(att.ContainerID + "/" + att.IfName))
	m := plan.MAC(sum[:6])
	m[0] = m[0]&^0x01 | 0x02
	return m, nil
}

// journalOf is what the journal keeps of a pod; nothing of one that was adopted
// and is not identified yet.
func journalOf(al ipam.Allocation) (j journaled) {
	if len(al.Extra) > 0 {
		_ = json.Unmarshal(al.Extra, &j)
	}
	return j
}

// localOf is what planning needs to know about a pod.
func localOf(al ipam.Allocation) plan.Local {
	j := journalOf(al)
	return plan.Local{
		Pod: api.Key{Namespace: al.Namespace, Name: al.Pod}, UID: j.UID, ContainerID: al.ContainerID,
		HostInterface: al.HostInterface, MAC: j.MAC, MTU: j.MTU, Addrs: al.Addresses, Labels: j.Labels, Ports: j.Ports,
	}
}

// endpointOf is what the others see of a pod.
func endpointOf(node string, al ipam.Allocation) *api.WorkloadEndpoint {
	l := localOf(al)
	w := api.WorkloadEndpointKind.New().(*api.WorkloadEndpoint)
	w.Namespace, w.Name, w.Labels = al.Namespace, al.Pod, l.Labels
	w.Spec = api.WorkloadEndpointSpec{
		Node: node, Pod: al.Pod, ContainerID: al.ContainerID, Endpoint: al.IfName,
		InterfaceName: al.HostInterface, MAC: l.MAC.String(), Ports: l.Ports,
	}
	for _, a := range al.Addresses {
		w.Spec.IPNetworks = append(w.Spec.IPNetworks, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return w
}

// leavePatience bounds how long an attachment waits for a host port of a pod that is
// being taken down.
const leavePatience = 5 * time.Second

// awaitHostPorts refuses host ports that another pod of this node has. For those of
// pods that are being taken down it waits: a runtime may start a pod's successor as
// soon as DEL was answered, when its rules are still in the kernel.
func (a *Agent) awaitHostPorts(ctx context.Context, ports []api.WorkloadEndpointPort) error {
	if !slices.ContainsFunc(ports, func(p api.WorkloadEndpointPort) bool { return p.HostPort != 0 }) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	for {
		port, owner, taken := a.takenHostPort(ports)
		switch {
		case !taken:
			return nil
		case !owner.Leaving && !a.detaching.has(owner.ID):
			return fmt.Errorf("host port %d/%s is pod %s/%s's on this node: choose another, or another node",
				port.HostPort, port.Protocol, owner.Namespace, owner.Pod)
		}
		if err := cmp.Or(a.detaching.wait(ctx, owner.ID), ctx.Err()); err != nil {
			return fmt.Errorf("%w: host port %d/%s is still being released by pod %s/%s",
				cni.ErrTryAgain, port.HostPort, port.Protocol, owner.Namespace, owner.Pod)
		}
	}
}

// takenHostPort is a host port that another pod of this node has, and that pod.
// Pods that are not being taken down come first.
func (a *Agent) takenHostPort(ports []api.WorkloadEndpointPort) (port api.WorkloadEndpointPort, owner ipam.Allocation, taken bool) {
	for _, al := range a.ipam.List() {
		for _, have := range journalOf(al).Ports {
			for _, want := range ports {
				if want.HostPort == 0 || want.HostPort != have.HostPort || want.Protocol != have.Protocol ||
					want.HostIP != have.HostIP && !anyHostIP(want.HostIP) && !anyHostIP(have.HostIP) {
					continue
				}
				if !al.Leaving {
					return want, al, true
				}
				port, owner, taken = want, al, true
			}
		}
	}
	return port, owner, taken
}

func anyHostIP(text string) bool {
	ip, err := netip.ParseAddr(text)
	return text == "" || err == nil && ip.IsUnspecified()
}

// attached is what the runtime is told.
func attached(link pod.Attachment) cni.Attached {
	out := cni.Attached{
		HostInterface: link.HostInterface, HostMAC: plan.PodGatewayMAC, PodMAC: link.PodMAC.String(),
		Addresses: link.Addresses, MTU: link.MTU,
	}
	for _, p := range link.Addresses {
		gateway := plan.PodGateway4
		if p.Addr().Is6() {
			gateway = plan.PodGateway6
		}
		next := netip.MustParseAddr(gateway)
		out.Gateways = append(out.Gateways, next)
		out.Routes = append(out.Routes, cni.Route{Destination: defaultRoute(next), Gateway: next})
	}
	return out
}

func defaultRoute(of netip.Addr) netip.Prefix {
	if of.Is6() {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// restorePods takes up what an earlier agent attached: the journal says who has
// which address, the kernel which of them are still there.
func (a *Agent) restorePods() error {
	devices, err := pod.List()
	if err != nil {
		return err
	}
	var live []ipam.Interface
	for _, d := range devices {
		live = append(live, ipam.Interface{
			HostInterface: d.HostInterface,
			ID:            ipam.ID{ContainerID: d.ContainerID, IfName: d.PodInterface},
			Addresses:     d.Addresses,
		})
	}
	report, err := a.ipam.Reconcile(live)
	if err != nil {
		return fmt.Errorf("compare the journal with the kernel: %w", err)
	}
	var gone []netip.Addr
	for _, al := range report.Freed {
		a.log.Info("released the addresses of a pod that is gone", "namespace", al.Namespace, "pod", al.Pod, "addresses", al.Addresses)
		gone = append(gone, al.Addresses...)
	}
	if err := conntrack.Forget(gone); err != nil {
		return err
	}
	for _, al := range report.Adopted {
		a.log.Warn("took up a pod that the journal did not know", "interface", al.HostInterface, "addresses", al.Addresses)
	}
	for _, conflict := range report.Conflicts {
		a.log.Error("addresses are in use twice", "detail", conflict)
	}
	for _, al := range a.ipam.List() {
		a.planner.SetLocal(localOf(al))
		a.publisher.attached(endpointOf(a.config.NodeName, al))
	}
	return nil
}

// identify takes from the store's endpoint whose an adopted interface is: its
// device tells no more than the container. Nothing is programmed before all
// endpoints were seen, so no policy is late. It runs on the loop.
func (a *Agent) identify(w *api.WorkloadEndpoint) {
	id := ipam.ID{ContainerID: w.Spec.ContainerID, IfName: w.Spec.Endpoint}
	if w.Spec.ContainerID == "" {
		id = a.holderOf(w.Spec.IPNetworks)
	}
	if al, ok := a.ipam.Get(id); !ok || al.Pod != "" {
		return
	}
	j := journaled{UID: w.UID, Labels: w.Labels, Ports: w.Spec.Ports}
	j.MAC, _ = plan.ParseMAC(w.Spec.MAC) // without one there is no permanent neighbour
	extra, err := json.Marshal(j)
	if err != nil {
		a.log.Error("note whose an interface is", "namespace", w.Namespace, "pod", w.Name, "error", err)
		return
	}
	al, ok, err := a.ipam.Identify(id, w.Namespace, w.Name, extra)
	if err != nil {
		a.log.Error("note whose an interface is", "namespace", w.Namespace, "pod", w.Name, "error", err)
	}
	if ok {
		a.planner.SetLocal(localOf(al))
		a.publisher.attached(endpointOf(a.config.NodeName, al))
	}
}

// holderOf is who has one of the addresses on this node.
func (a *Agent) holderOf(networks []string) ipam.ID {
	for _, al := range a.ipam.List() {
		for _, addr := range al.Addresses {
			if slices.Contains(networks, netip.PrefixFrom(addr, addr.BitLen()).String()) {
				return al.ID
			}
		}
	}
	return ipam.ID{}
}

// detachments are the pods that are being taken down in the background.
type detachments struct {
	mu      sync.Mutex
	running map[ipam.ID]chan struct{}
}

// start runs f in the background unless the pod is being taken down already.
func (d *detachments) start(id ipam.ID, f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running[id] != nil {
		return
	}
	if d.running == nil {
		d.running = map[ipam.ID]chan struct{}{}
	}
	done := make(chan struct{})
	d.running[id] = done
	go func() {
		f()
		d.mu.Lock()
		delete(d.running, id)
		d.mu.Unlock()
		close(done)
	}()
}

// has says whether the pod is being taken down.
func (d *detachments) has(id ipam.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running[id] != nil
}

// wait waits until the pod is not being taken down.
func (d *detachments) wait(ctx context.Context, id ipam.ID) error {
	d.mu.Lock()
	done := d.running[id]
	d.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
