package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/cni/client"
)

// config is a network configuration as a plugin gets it.
type config struct {
	version string
	name    string
	dns     json.RawMessage // passed on
	prev    json.RawMessage // nil: none

	labels map[string]string
	ports  []api.WorkloadEndpointPort
	want   []netip.Addr
	mac    string

	valid    []ID // of GC
	hasValid bool
}

var networkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// parseConfig reads a configuration. Its errors are of type *client.Error.
func parseConfig(text []byte) (*config, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		return nil, fail(client.CodeDecode, "can't decode the network configuration", err.Error())
	}
	c := &config{}
	// The version first, so that it is in every other error.
	if err := c.setVersion(keys["cniVersion"]); err != nil {
		return c, err
	}
	names := make([]string, 0, len(keys))
	for key := range keys {
		names = append(names, key)
	}
	slices.Sort(names) // the same mistake is reported each time
	for _, key := range names {
		if err := c.set(key, keys[key]); err != nil {
			return c, err
		}
	}
	if c.name == "" {
		return c, fail(client.CodeInvalidConfig, "the network configuration has no name", "")
	}
	return c, nil
}

func (c *config) setVersion(value json.RawMessage) error {
	if err := decode("cniVersion", orNull(value), &c.version); err != nil {
		return err
	}
	if !slices.Contains(client.Versions, c.version) {
		asked := c.version
		c.version = "" // not one that an error may be worded in
		return fail(client.CodeIncompatibleVersion, fmt.Sprintf("cniVersion %q is not supported", asked),
			"supported are "+strings.Join(client.Versions, ", "))
	}
	return nil
}

func (c *config) set(key string, value json.RawMessage) error {
	switch key {
	case "cniVersion", "type", "socket":
		var word string
		return decode(key, value, &word)
	case "cniVersions", "capabilities", "disableCheck", "disableGC", "loadOnlyInlinedPlugins":
		return nil // for the runtime
	case "name":
		if err := decode(key, value, &c.name); err != nil {
			return err
		}
		if !networkName.MatchString(c.name) {
			return invalid(key, value, "begin with a letter or digit, go on with these, _ . -")
		}
	case "ipMasq":
		if !isEmpty(value) {
			return unsupported(key, value, "natOutgoing of the IPPool says what is masqueraded")
		}
	case "ipam":
		if !isEmpty(value) {
			return unsupported(key, value, "addresses come from Twill's IPPools: remove the section")
		}
	case "dns":
		var dns struct {
			Nameservers, Search, Options []string
			Domain                       string
		}
		if err := decode(key, value, &dns); err != nil {
			return err
		}
		if !isEmpty(value) {
			c.dns = value
		}
	case "prevResult":
		if !isEmpty(value) {
			c.prev = value
		}
	case "runtimeConfig":
		return c.setCapabilities(value)
	case "args":
		return c.setArgs(value)
	case "cni.dev/valid-attachments":
		c.hasValid = true
		return decode(key, value, &c.valid)
	default:
		if !strings.HasPrefix(key, "cni.dev/") {
			return fail(client.CodeInvalidConfig, fmt.Sprintf("the network configuration has an unknown key %q", key), "value "+short(value))
		}
	}
	return nil
}

// setCapabilities reads runtimeConfig.
func (c *config) setCapabilities(value json.RawMessage) error {
	var capabilities map[string]json.RawMessage
	if err := decode("runtimeConfig", value, &capabilities); err != nil {
		return err
	}
	for key, value := range capabilities {
		path := "runtimeConfig." + key
		var err error
		switch {
		case isEmpty(value):
		case key == "portMappings":
			err = c.setPortMappings(path, value)
		case key == "ips":
			c.want, err = parseIPs(path, value)
		case key == "mac":
			err = c.setMAC(path, value)
		default:
			err = unsupported(path, value, "take the capability out of the network configuration")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *config) setPortMappings(path string, value json.RawMessage) error {
	var mappings []struct {
		HostPort, ContainerPort int32
		Protocol, HostIP        string
	}
	if err := decode(path, value, &mappings); err != nil {
		return err
	}
	for _, m := range mappings {
		if m.HostPort == 0 {
			continue // a port without a host port
		}
		protocol, ok := parseProtocol(m.Protocol)
		if !ok {
			return invalid(path, value, "protocol is tcp, udp or sctp")
		}
		if !isPort(m.HostPort) || !isPort(m.ContainerPort) {
			return invalid(path, value, "a port is between 1 and 65535")
		}
		if _, err := netip.ParseAddr(m.HostIP); err != nil && m.HostIP != "" {
			return invalid(path, value, "hostIP is an address")
		}
		c.addHostPort(api.WorkloadEndpointPort{Protocol: protocol, Port: m.ContainerPort, HostPort: m.HostPort, HostIP: m.HostIP})
	}
	return nil
}

func (c *config) setMAC(path string, value json.RawMessage) error {
	if err := decode(path, value, &c.mac); err != nil {
		return err
	}
	if !isMAC(c.mac) {
		return invalid(path, value, "it is six bytes, such as 02:00:00:00:00:01, of one host")
	}
	return nil
}

// setArgs reads what we know of args. The rest is for others: by convention
// args are not refused.
func (c *config) setArgs(value json.RawMessage) error {
	var args struct {
		CNI struct {
			Labels []struct{ Key, Value string } `json:"labels"`
			IPs    json.RawMessage               `json:"ips"`
		} `json:"cni"`
		Twill struct {
			Ports []struct {
				Name     string `json:"name"`
				Protocol string `json:"protocol"`
				Port     int32  `json:"port"`
			} `json:"ports"`
		} `json:"twill.io"`
	}
	if err := decode("args", value, &args); err != nil {
		return err
	}
	for _, l := range args.CNI.Labels {
		problems := append(validation.IsQualifiedName(l.Key), validation.IsValidLabelValue(l.Value)...)
		if len(problems) > 0 {
			return fail(client.CodeInvalidConfig, fmt.Sprintf("args.cni.labels: %q=%q is not a label", l.Key, l.Value), problems[0])
		}
		if c.labels == nil {
			c.labels = map[string]string{}
		}
		c.labels[l.Key] = l.Value
	}
	for _, p := range args.Twill.Ports {
		protocol, ok := parseProtocol(p.Protocol)
		if !ok || !isPort(p.Port) {
			return fail(client.CodeInvalidConfig, fmt.Sprintf("args.twill.io.ports: %d/%s is not a port", p.Port, p.Protocol), "")
		}
		if problems := validation.IsValidPortName(p.Name); p.Name != "" && len(problems) > 0 {
			return fail(client.CodeInvalidConfig, fmt.Sprintf("args.twill.io.ports: %q is not a port's name", p.Name), problems[0])
		}
		c.ports = append(c.ports, api.WorkloadEndpointPort{Name: p.Name, Protocol: protocol, Port: p.Port})
	}
	var err error
	if !isEmpty(orNull(args.CNI.IPs)) {
		c.want, err = parseIPs("args.cni.ips", args.CNI.IPs)
	}
	return err
}

// addHostPort gives a port that is known by name its host port, or adds one.
// "args" sorts before "runtimeConfig", so that names are known by then.
func (c *config) addHostPort(p api.WorkloadEndpointPort) {
	for i, known := range c.ports {
		if known.HostPort == 0 && known.Protocol == p.Protocol && known.Port == p.Port {
			p.Name = known.Name
			c.ports[i] = p
			return
		}
	}
	c.ports = append(c.ports, p)
}

func parseIPs(path string, value json.RawMessage) ([]netip.Addr, error) {
	var words []string
	if err := decode(path, value, &words); err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, w := range words {
		a, ok := parseIP(w)
		if !ok || slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			return nil, invalid(path, value, "one address of a family, such as 10.244.1.7 or 10.244.1.7/16")
		}
		out = append(out, a)
	}
	return out, nil
}

// parseIP reads an address, with or without a prefix length.
func parseIP(word string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(word)
	if err != nil {
		p, prefixErr := netip.ParsePrefix(word)
		a, err = p.Addr(), prefixErr
	}
	a = a.Unmap()
	return a, err == nil && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}

func isMAC(text string) bool {
	hw, err := net.ParseMAC(text)
	return err == nil && len(hw) == 6 && hw[0]&1 == 0 && !bytes.Equal(hw, make([]byte, 6))
}

func isPort(p int32) bool { return p >= 1 && p <= 65535 }

// parseProtocol takes names in any case, as runtimes write them; none is TCP.
func parseProtocol(word string) (corev1.Protocol, bool) {
	switch p := corev1.Protocol(strings.ToUpper(word)); p {
	case "":
		return corev1.ProtocolTCP, true
	case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		return p, true
	}
	return "", false
}

// decode reads the value of a key. What has the wrong type is refused, and so
// are unknown fields, but for those parts of which the specification says that
// anybody may add to them.
func decode(path string, value json.RawMessage, into any) error {
	d := json.NewDecoder(bytes.NewReader(value))
	if path != "args" && !strings.HasPrefix(path, "cni.dev/") {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(into); err != nil {
		return fail(client.CodeInvalidConfig, fmt.Sprintf("key %q of the network configuration is invalid", path), fmt.Sprintf("%v: value %s", err, short(value)))
	}
	return nil
}

// isEmpty says whether a value says nothing.
func isEmpty(value json.RawMessage) bool {
	var v any
	if json.Unmarshal(value, &v) != nil {
		return false
	}
	return emptyValue(v)
}

func emptyValue(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case float64:
		return v == 0
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any: // {"ingressRate": 0} limits nothing
		for _, inner := range v {
			if !emptyValue(inner) {
				return false
			}
		}
		return true
	}
	return false
}

func orNull(value json.RawMessage) json.RawMessage {
	if value == nil {
		return json.RawMessage("null")
	}
	return value
}

// short is a value for an error.
func short(value json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, value) != nil {
		return "that is no JSON"
	}
	if b.Len() > 200 {
		return b.String()[:200] + "..."
	}
	return b.String()
}

func fail(code int, msg, details string) *client.Error {
	return &client.Error{Code: code, Msg: msg, Details: details}
}

func invalid(path string, value json.RawMessage, want string) *client.Error {
	return fail(client.CodeInvalidConfig, fmt.Sprintf("key %q of the network configuration is invalid", path), fmt.Sprintf("value %s: %s", short(value), want))
}

// unsupported is for keys that mean something, but not to us. The specification
// wants key and value in the message.
func unsupported(path string, value json.RawMessage, remedy string) *client.Error {
	return fail(client.CodeUnsupportedField, fmt.Sprintf("unsupported field %q: %s", path, short(value)), remedy)
}
