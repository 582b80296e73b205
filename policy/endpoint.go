package policy

import (
	"fmt"
	"net/netip"

	"github.com/twill-net/twill/api"
)

// EndpointOf is what policy needs of a WorkloadEndpoint, which is not kept. The
// error names an address or port that can't be understood.
func EndpointOf(w *api.WorkloadEndpoint) (Endpoint, error) {
	e := Endpoint{Key: api.KeyOf(w), Labels: w.Labels}
	for _, text := range w.Spec.IPNetworks {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return Endpoint{}, fmt.Errorf("spec.ipNetworks: %w", err)
		}
		if !p.IsSingleIP() {
			return Endpoint{}, fmt.Errorf("spec.ipNetworks: %s is not a single address", text)
		}
		e.Addrs = append(e.Addrs, p.Addr().Unmap())
	}
	var err error
	e.Ports, err = NamedPorts(w.Spec.Ports)
	return e, err
}

// NamedPorts are the ports that have a name.
func NamedPorts(ports []api.WorkloadEndpointPort) ([]NamedPort, error) {
	var out []NamedPort
	for _, p := range ports {
		if p.Name == "" {
			continue
		}
		protocol, err := ProtocolOf(p.Protocol)
		if err != nil {
			return nil, fmt.Errorf("port %s: %w", p.Name, err)
		}
		if p.Port < 1 || p.Port > 65535 {
			return nil, fmt.Errorf("port %s: %d is not a port", p.Name, p.Port)
		}
		out = append(out, NamedPort{p.Name, protocol, uint16(p.Port)})
	}
	return out, nil
}
