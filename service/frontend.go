package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"
)

// Local is what the choice of endpoints depends on besides the Service: where
// we are.
type Local struct {
	Node string
	Zone string // label topology.kubernetes.io/zone; may be empty
	// Addrs are the node's addresses, on which node ports are served.
	Addrs []netip.Addr
	// ExternalIPs are the ranges in which Services may take external IPs.
	// Anybody who may write a Service could otherwise take over any address
	// (CVE-2020-8554).
	ExternalIPs []netip.Prefix
}

// Class says what kind of address a front end has.
type Class int

// The classes. Where two front ends want the same address and port, the lower
// class has it.
const (
	ClusterIP Class = iota
	NodePort
	LoadBalancer
	ExternalIP
	HostPort // a port of a pod, made by no Service
)

// String is the class's name as Kubernetes users know it.
func (c Class) String() string {
	return [...]string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalIP", "HostPort"}[c]
}

// Refusal is what becomes of a packet to a front end that nobody answers.
type Refusal int

// The refusals.
const (
	// Reject: nobody anywhere serves this, and the client shall know at once.
	Reject Refusal = iota
	// Drop: somebody serves this, but not from here or not for this client.
	Drop
)

// Frontend is one address and port that is balanced. Front ends share their
// lists: they must not be changed.
type Frontend struct {
	Class    Class
	Addr     netip.Addr
	Protocol uint8 // IP protocol number
	Port     uint16
	PortName string

	// Backends serve every client; if Local is set, only clients on this
	// node. Sorted.
	Backends []netip.AddrPort
	// Local is external traffic policy Local: clients elsewhere get
	// LocalBackends, the endpoints on this node, which see the client's own
	// address.
	Local         bool
	LocalBackends []netip.AddrPort // sorted
	// Serving are all endpoints that can answer, chosen for new connections or
	// not; connections to them go on. Sorted.
	Serving []netip.AddrPort

	Affinity time.Duration // a client stays with its endpoint for so long; 0: not at all
	// SourceRanges are the clients that are let in; nil: all. Packets of other
	// clients are dropped.
	SourceRanges []netip.Prefix
	// Refusal is for clients that are let in and whose list is empty.
	Refusal Refusal
}

// LetsIn says whether the front end's source ranges let a client in.
func (f *Frontend) LetsIn(client netip.Addr) bool {
	return f.SourceRanges == nil || slices.ContainsFunc(f.SourceRanges, func(p netip.Prefix) bool { return p.Contains(client) })
}

// Frontends returns the Service's front ends on the node, and why some that it
// asks for are not among them. The slices are all those of the Service, in any
// order.
func (s *Service) Frontends(from []*Slice, local Local) (out []Frontend, problems []string) {
	externalIPs, problems := s.allowedExternalIPs(local)
	node := unique.Make(local.Node)
	for _, port := range s.Ports {
		for _, is4 := range []bool{true, false} {
			addrs := s.addresses(port, is4, local, externalIPs)
			if len(addrs) == 0 {
				continue
			}
			c := choose(candidates(from, port, is4, node), local)
			for _, a := range addrs {
				f := s.frontend(a.class, c)
				f.Addr, f.Protocol, f.Port, f.PortName = a.addr, port.Protocol, a.port, port.Name
				if a.class == LoadBalancer {
					f.SourceRanges = rangesOf(s.SourceRanges, a.addr, local.Addrs)
				}
				out = append(out, f)
			}
		}
	}
	return out, problems
}

type address struct {
	class Class
	addr  netip.Addr
	port  uint16
}

// addresses lists where a port is served, in one family.
func (s *Service) addresses(port Port, is4 bool, local Local, externalIPs []netip.Addr) []address {
	var out []address
	add := func(class Class, port uint16, addrs []netip.Addr) {
		for _, a := range addrs {
			if a.Is4() == is4 {
				out = append(out, address{class, a, port})
			}
		}
	}
	add(ClusterIP, port.Port, s.ClusterIPs)
	if port.NodePort != 0 && s.hasFamily(is4) {
		add(NodePort, port.NodePort, local.Addrs)
	}
	add(LoadBalancer, port.Port, s.LoadBalancerIPs)
	add(ExternalIP, port.Port, externalIPs)
	return out
}

// hasFamily says whether the Service is of that family: its cluster IPs tell.
func (s *Service) hasFamily(is4 bool) bool {
	return slices.ContainsFunc(s.ClusterIPs, func(a netip.Addr) bool { return a.Is4() == is4 })
}

// frontend applies the traffic policies of the class to the endpoints chosen.
func (s *Service) frontend(class Class, c choice) Frontend {
	f := Frontend{Class: class, Backends: c.cluster, Serving: c.serving, Affinity: s.Affinity}
	switch {
	case class == ClusterIP && s.InternalLocal:
		f.Backends = c.local
	case class != ClusterIP && s.ExternalLocal:
		f.Local, f.LocalBackends = true, c.local
	}
	// The cluster's list is empty only if nobody serves anywhere: hints never
	// empty it.
	if len(c.cluster) > 0 {
		f.Refusal = Drop
	}
	return f
}

func (s *Service) allowedExternalIPs(local Local) (allowed []netip.Addr, problems []string) {
	var refused []string
	for _, a := range s.ExternalIPs {
		if slices.ContainsFunc(local.ExternalIPs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			allowed = append(allowed, a)
		} else {
			refused = append(refused, a.String())
		}
	}
	if refused != nil {
		problems = []string{fmt.Sprintf("externalIPs %s: not in a range that is allowed for external IPs; remove them or allow the range (twill agent --external-ips)", strings.Join(refused, ", "))}
	}
	return allowed, problems
}

// rangesOf returns the source ranges that hold for one address: those of its
// family. A family for which the Service names none is not restricted; that is
// how Kubernetes defines the field. It returns nil if everybody is let in.
func rangesOf(ranges []netip.Prefix, vip netip.Addr, nodeAddrs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range ranges {
		switch {
		case !r.IsValid():
			out = append([]netip.Prefix{}, out...) // not nil: restricted, though nobody is let in by it
		case r.Addr().Is4() != vip.Is4():
		case r.Bits() == 0:
			return nil
		default:
			out = append(out, r)
		}
	}
	// Where the address is also on an interface of the node, the node's own
	// connections to it have it as their source.
	letIn := func(a netip.Addr) bool {
		return slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if slices.ContainsFunc(nodeAddrs, letIn) {
		out = append(out, netip.PrefixFrom(vip, vip.BitLen()))
	}
	return out
}
