package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/twill-net/twill/cni/client"
)

// result is the specification's result of ADD. The versions that we speak
// differ in two fields: ips[].version was there until 0.4.0, interfaces[].mtu
// is there from 1.1.0.
type result struct {
	CNIVersion string            `json:"cniVersion"`
	Interfaces []json.RawMessage `json:"interfaces,omitempty"`
	IPs        []json.RawMessage `json:"ips,omitempty"`
	Routes     []json.RawMessage `json:"routes,omitempty"`
	DNS        json.RawMessage   `json:"dns,omitempty"`
}

type resultInterface struct {
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty"`
	MTU     int    `json:"mtu,omitempty"`
	Sandbox string `json:"sandbox,omitempty"`
}

type resultIP struct {
	Version   string       `json:"version,omitempty"`
	Interface *int         `json:"interface,omitempty"`
	Address   netip.Prefix `json:"address"`
	Gateway   netip.Addr   `json:"gateway,omitzero"`
}

type resultRoute struct {
	Destination netip.Prefix `json:"dst"`
	Gateway     netip.Addr   `json:"gw,omitzero"`
}

// newResult words what was attached in the configuration's version. The result
// of a plugin before us is kept, with ours added.
func newResult(c *config, a Attachment, got Attached) (json.RawMessage, error) {
	r, err := previousResult(c)
	if err != nil {
		return nil, err
	}
	r.CNIVersion = c.version
	if c.dns != nil {
		r.DNS = c.dns
	}
	host := resultInterface{Name: got.HostInterface, MAC: got.HostMAC, MTU: got.MTU}
	pod := resultInterface{Name: a.IfName, MAC: got.PodMAC, MTU: got.MTU, Sandbox: a.NetNS}
	if c.version != "1.1.0" {
		host.MTU, pod.MTU = 0, 0
	}
	r.Interfaces = append(r.Interfaces, encode(host), encode(pod))
	podIndex := len(r.Interfaces) - 1
	for _, address := range got.Addresses {
		ip := resultIP{Interface: &podIndex, Address: address}
		if c.version == "0.3.1" || c.version == "0.4.0" {
			ip.Version = map[bool]string{true: "4", false: "6"}[address.Addr().Is4()]
		}
		for _, g := range got.Gateways {
			if g.Is4() == address.Addr().Is4() {
				ip.Gateway = g
			}
		}
		r.IPs = append(r.IPs, encode(ip))
	}
	for _, route := range got.Routes {
		r.Routes = append(r.Routes, encode(resultRoute(route)))
	}
	return encode(r), nil
}

// encode is for our own types, which have nothing that can't be encoded.
func encode(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		return json.RawMessage("null")
	}
	return text
}

// previousResult reads prevResult as far as it has to be kept; it is empty if
// there is none.
func previousResult(c *config) (result, error) {
	var r result
	if c.prev == nil {
		return r, nil
	}
	if err := json.Unmarshal(c.prev, &r); err != nil {
		return r, fail(client.CodeDecode, "can't decode prevResult", err.Error())
	}
	return r, nil
}

// checkFree refuses an interface that a plugin before us has made.
func checkFree(c *config, a Attachment) error {
	r, err := previousResult(c)
	if err != nil {
		return err
	}
	i, err := r.find(a)
	if err == nil && i >= 0 {
		err = fail(client.CodeInvalidConfig, fmt.Sprintf("a plugin before twill-cni has made the interface %s", a.IfName),
			"twill-cni makes the pod's interface itself: put it first")
	}
	return err
}

// find is the index of the pod's interface in a result, or -1.
func (r result) find(a Attachment) (int, error) {
	for i, raw := range r.Interfaces {
		var in resultInterface
		if err := json.Unmarshal(raw, &in); err != nil {
			return -1, fail(client.CodeDecode, "can't decode interfaces of prevResult", err.Error())
		}
		if in.Name == a.IfName && in.Sandbox != "" {
			return i, nil
		}
	}
	return -1, nil
}

// remembered reads from prevResult what an attachment has got. What a later
// plugin took out is empty.
func remembered(c *config, a Attachment) (Attached, error) {
	var got Attached
	if c.prev == nil {
		return got, fail(client.CodeInvalidConfig, "CHECK needs prevResult", "the runtime has to pass the result of ADD")
	}
	r, err := previousResult(c)
	if err != nil {
		return got, err
	}
	index, err := r.find(a)
	if err != nil {
		return got, err
	}
	if index < 0 {
		return got, fail(client.CodeInvalidConfig, fmt.Sprintf("prevResult has no interface %s", a.IfName), "it is not the result of this attachment")
	}
	// Neither error can occur: find has decoded these already.
	var pod, host resultInterface
	_ = json.Unmarshal(r.Interfaces[index], &pod)
	got.PodMAC, got.MTU = pod.MAC, pod.MTU
	if index > 0 && json.Unmarshal(r.Interfaces[index-1], &host) == nil && host.Sandbox == "" {
		got.HostInterface, got.HostMAC = host.Name, host.MAC
	}
	for _, raw := range r.IPs {
		var ip resultIP
		if err := json.Unmarshal(raw, &ip); err != nil {
			return got, fail(client.CodeDecode, "can't decode ips of prevResult", err.Error())
		}
		if ip.Interface == nil || *ip.Interface != index {
			continue
		}
		got.Addresses = append(got.Addresses, ip.Address)
		if ip.Gateway.IsValid() {
			got.Gateways = append(got.Gateways, ip.Gateway)
		}
	}
	for _, raw := range r.Routes {
		var route resultRoute
		if err := json.Unmarshal(raw, &route); err != nil {
			return got, fail(client.CodeDecode, "can't decode routes of prevResult", err.Error())
		}
		got.Routes = append(got.Routes, Route(route))
	}
	return got, nil
}
