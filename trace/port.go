package trace

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/policy"
	"github.com/twill-net/twill/service"
)

// hostPortAt finds the pod to which a node leads a port of an address, and that
// node. A host port without an address is served at those of the pod's node, as
// far as the store has them.
func (s *Snapshot) hostPortAt(addr netip.Addr, proto uint8, port uint16) (pod api.Key, node string, f service.Frontend, ok bool) {
	for _, key := range slices.SortedFunc(maps.Keys(s.pods), compareKeys) {
		w := s.pods[key]
		for _, p := range w.Spec.Ports {
			protocol, known := service.ParseProtocol(p.Protocol)
			if !known || protocol != proto || p.HostPort != int32(port) || p.HostPort == 0 || !s.servesAt(w, p.HostIP, addr) {
				continue
			}
			for _, a := range s.policies.Endpoints[key].Addrs {
				if a.Is4() == addr.Is4() {
					to := []netip.AddrPort{netip.AddrPortFrom(a, uint16(p.Port))}
					return key, w.Spec.Node, service.Frontend{
						Class: service.HostPort, Addr: addr, Protocol: proto, Port: port, Backends: to, Local: true, LocalBackends: to,
					}, true
				}
			}
		}
	}
	return api.Key{}, "", service.Frontend{}, false
}

// servesAt says whether a host port with this host IP, which may be empty, is
// served at an address.
func (s *Snapshot) servesAt(w *api.WorkloadEndpoint, hostIP string, addr netip.Addr) bool {
	ip, err := netip.ParseAddr(hostIP)
	if err == nil && !ip.IsUnspecified() {
		return ip.Unmap() == addr
	}
	if err == nil && ip.Is4() != addr.Is4() {
		return false
	}
	n := s.nodes[w.Spec.Node]
	return n != nil && slices.Contains(api.NodeAddresses(n), addr)
}

// namedPort finds the port of a pod or Service that has a name. Without a protocol
// it is the one of the first protocol that has it: TCP, UDP, SCTP.
func (s *Snapshot) namedPort(to Party, name string, proto uint8) (uint8, uint16, error) {
	wanted := []uint8{policy.TCP, policy.UDP, policy.SCTP}
	if proto != 0 {
		wanted = []uint8{proto}
	}
	var names []string
	found := map[uint8]uint16{}
	add := func(portName string, protocol uint8, port uint16) {
		if portName != "" {
			names = append(names, portName+"/"+policy.ProtocolName(protocol))
		}
		if _, there := found[protocol]; !there && portName == name {
			found[protocol] = port
		}
	}
	switch {
	case to.Pod != nil:
		for _, p := range s.policies.Endpoints[*to.Pod].Ports {
			add(p.Name, p.Protocol, p.Port)
		}
	case to.About == "service":
		if key, ok := s.serviceOf(to.Addrs[0]); ok {
			for _, p := range s.services[key].Ports {
				add(p.Name, p.Protocol, p.Port)
			}
		}
	default:
		return 0, 0, fmt.Errorf("%s has no port names: give the number instead of %q", to, name)
	}
	for _, protocol := range wanted {
		if port, ok := found[protocol]; ok {
			return protocol, port, nil
		}
	}
	if len(names) == 0 {
		return 0, 0, fmt.Errorf("%s has no named ports: give the number instead of %q", to, name)
	}
	return 0, 0, fmt.Errorf("%s has no port named %q; it has %s", to, name, strings.Join(names, ", "))
}
