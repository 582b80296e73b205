package cni

import (
	"encoding/json"

	"github.com/twill-net/twill/cni/client"
)

// Conflist is the network configuration that a node's runtime needs, for
// /etc/cni/net.d/10-twill.conflist. socket may be empty for the default.
func Conflist(socket string) []byte {
	type plugin struct {
		Type         string          `json:"type"`
		Socket       string          `json:"socket,omitempty"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	if socket == client.DefaultSocket {
		socket = ""
	}
	text, err := json.MarshalIndent(struct {
		CNIVersion string   `json:"cniVersion"`
		Name       string   `json:"name"`
		Plugins    []plugin `json:"plugins"`
	}{"1.0.0", "twill", []plugin{{
		Type: "twill-cni", Socket: socket,
		Capabilities: map[string]bool{"portMappings": true, "ips": true, "mac": true},
	}}}, "", "  ")
	if err != nil {
		return nil // strings and booleans can be encoded
	}
	return append(text, '\n')
}
