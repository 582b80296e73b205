package main

import (
	"errors"
	"log/slog"
	"net/netip"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/dataplane/pod"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/plan"
)

// node is Twill on a node, without what the agent adds: a planner and the
// kernel that its plan is made true in.
type node struct {
	*namespace
	planner *plan.Planner
	nft     *nft.Kernel
	route   *route.Kernel
}

func newNode(ns *namespace) (*node, error) {
	n := &node{namespace: ns, planner: plan.NewPlanner(ns.name)}
	err := ns.Do(func() (err error) {
		log := slog.New(slog.DiscardHandler)
		if n.nft, err = nft.Open(log); err != nil {
			return err
		}
		n.route, err = route.Open(log)
		return err
	})
	return n, err
}

// close ends the connections to the kernel; what is in it stays.
func (n *node) close() {
	n.route.Close()
	_ = n.nft.Close() // nothing is read or written any more
}

// join says how the node is connected to the others, as the agent finds it out.
func (n *node) join(addr netip.Addr) error {
	return n.Do(func() error {
		underlay, err := route.DetectUnderlay([]netip.Addr{addr})
		if err == nil {
			n.planner.SetUnderlay(underlay)
		}
		return err
	})
}

// attach makes a pod's interface, and tells the planner of the pod.
func (n *node) attach(ns *namespace, l plan.Local) error {
	a := pod.Attachment{
		NetNS: ns.path(), PodInterface: "eth0", HostInterface: l.HostInterface, ContainerID: l.ContainerID,
		PodMAC: l.MAC, Addresses: []netip.Prefix{netip.PrefixFrom(l.Addrs[0], 32)}, MTU: n.planner.PodMTU(),
	}
	n.planner.SetLocal(l)
	return n.Do(func() error { return pod.Attach(a) })
}

// apply makes the plan true, rules before links.
func (n *node) apply() error {
	return n.Do(func() error {
		p := n.planner.Flush()
		_, err := n.nft.Apply(p)
		_, routeErr := n.route.Apply(p)
		return errors.Join(err, routeErr)
	})
}

func (n *node) put(objects ...api.Object) error {
	for _, o := range objects {
		n.planner.Put(o)
	}
	return nil
}

// build makes the kernel track connections, and look whether to translate them.
func (f firewall) build(ns *namespace) error {
	p := plan.New()
	if f == translated {
		for hook, priority := range map[string]int{"prerouting": -100, "output": -100, "postrouting": 100} {
			p.Chains.Set(hook, plan.Chain{Hook: hook, Type: "nat", Priority: priority})
		}
	}
	p.Chains.Set("forward", plan.Chain{Hook: "forward", Type: "filter", Rules: []plan.Rule{
		plan.R(plan.CtState{"established", "related"}, plan.Accept),
	}})
	return ns.Do(func() error {
		k, err := nft.Open(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		_, err = k.Apply(p)
		return errors.Join(err, k.Close())
	})
}

// peersOf puts everything about the nodes of a cluster, this one included.
func (n *node) peersOf(backend string, addrs map[string]netip.Addr, blocks map[string]netip.Prefix) error {
	if err := n.put(poolOf("10.244.0.0/16"), preference(backend)); err != nil {
		return err
	}
	for name, addr := range addrs {
		object, err := nodeOf(name, addr)
		if err != nil {
			return err
		}
		n.planner.Put(object)
		n.planner.Put(blockOf("block-"+name, name, blocks[name]))
	}
	return nil
}
