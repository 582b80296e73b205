package service

import (
	"cmp"
	"net/netip"
	"slices"
	"unique"
)

// candidate is an endpoint with the port that a Service's port has there.
type candidate struct {
	backend netip.AddrPort
	*endpoint
	local bool
}

// candidates collects a port's endpoints of one family, sorted. An endpoint that
// is in several slices, as happens while it moves from one to another, counts
// once: the copy on this node, then the most useful one.
func candidates(from []*Slice, port Port, is4 bool, node unique.Handle[string]) []candidate {
	var out []candidate
	for _, s := range from {
		for _, p := range s.ports {
			if p.Name != port.Name || p.Protocol != port.Protocol {
				continue
			}
			for i := range s.endpoints {
				if e := &s.endpoints[i]; e.addr.Is4() == is4 {
					out = append(out, candidate{netip.AddrPortFrom(e.addr, p.Port), e, e.node == node})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b candidate) int {
		return cmp.Or(a.backend.Compare(b.backend), b.preference()-a.preference(), a.hints.compare(b.hints))
	})
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.backend == b.backend })
}

func (c candidate) preference() int {
	n := 0
	for i, good := range []bool{!c.terminating, c.serving, c.ready, c.local} {
		if good {
			n |= 1 << i
		}
	}
	return n
}

// choice is who of the candidates gets connections.
type choice struct {
	cluster []netip.AddrPort // for whoever may be sent anywhere
	local   []netip.AddrPort // for whoever must stay on this node
	serving []netip.AddrPort // all that can answer, chosen or not
}

// choose applies readiness, topology and traffic policy as kube-proxy does
// (CategorizeEndpoints): ready endpoints, those near this node if the hints of
// all allow it; with none ready, those that still serve while they terminate.
// What is on this node is chosen by itself, hints apart.
func choose(all []candidate, local Local) choice {
	near := topology(all, local)
	lingering := func(c candidate) bool { return c.serving && c.terminating }
	ready := func(c candidate) bool { return c.ready }
	here := func(keep func(candidate) bool) func(candidate) bool {
		return func(c candidate) bool { return c.local && keep(c) }
	}
	return choice{
		cluster: firstOf(all, func(c candidate) bool { return c.ready && near(c) }, lingering),
		local:   firstOf(all, here(ready), here(lingering)),
		serving: firstOf(all, func(c candidate) bool { return c.ready || c.serving }),
	}
}

// firstOf returns the backends that pass the first filter that any passes.
func firstOf(all []candidate, filters ...func(candidate) bool) []netip.AddrPort {
	for _, keep := range filters {
		var out []netip.AddrPort
		for _, c := range all {
			if keep(c) {
				out = append(out, c.backend)
			}
		}
		if out != nil {
			return out
		}
	}
	return nil
}

// topology says which ready endpoints are near. Hints count only if every
// ready endpoint has them, since the control plane may be in the middle of
// writing them, and if some endpoint is meant for us at all.
func topology(all []candidate, local Local) func(candidate) bool {
	allNodes, allZones, myNode, myZone := true, true, false, false
	for _, c := range all {
		if c.ready {
			allNodes = allNodes && c.hintsNode()
			allZones = allZones && c.hintsZone()
			myNode = myNode || c.forNode(local.Node)
			myZone = myZone || c.forZone(local.Zone)
		}
	}
	switch {
	case allNodes && myNode:
		return func(c candidate) bool { return c.forNode(local.Node) }
	case allZones && myZone && local.Zone != "":
		return func(c candidate) bool { return c.forZone(local.Zone) }
	}
	return func(candidate) bool { return true }
}

// HealthChecks returns where load balancers ask whether the node has endpoints of the
// Service, which is the health check's port at the node's addresses of the Service's
// families, and the number of ready endpoints on the node of each address's family,
// whatever their ports. It is empty for Services without a health check.
func (s *Service) HealthChecks(from []*Slice, local Local) map[netip.AddrPort]int {
	if s.HealthCheckPort == 0 {
		return nil
	}
	here, ready := unique.Make(local.Node), map[bool]map[netip.Addr]struct{}{true: {}, false: {}} // by whether it is IPv4
	for _, slice := range from {
		for _, e := range slice.endpoints {
			if e.ready && e.node == here {
				ready[e.addr.Is4()][e.addr] = struct{}{}
			}
		}
	}
	checks := map[netip.AddrPort]int{}
	for _, a := range local.Addrs {
		if s.hasFamily(a.Is4()) {
			checks[netip.AddrPortFrom(a, s.HealthCheckPort)] = len(ready[a.Is4()])
		}
	}
	return checks
}
