package main

import "github.com/twill-net/twill/api"

// What the schemas demand beyond types, by kind and path; "[]" is a list's
// item. It follows api.Default, api.Validate and api.ValidateUpdate. What the API
// server can't check, such as the syntax of selectors, agents find and report as
// a condition.
var rules = map[string]limits{
	"IPPool.spec": {Validations: []rule{
		{"!isCIDR(self.cidr) || !has(self.blockSize) || (cidr(self.cidr).ip().family() == 4 ? " +
			"self.blockSize >= 20 && self.blockSize <= 32 : self.blockSize >= 116 && self.blockSize <= 128)",
			"blockSize must be between 20 and 32, inclusive, for IPv4, and between 116 and 128, inclusive, for IPv6"},
		{"!isCIDR(self.cidr) || !has(self.blockSize) || self.blockSize >= cidr(self.cidr).prefixLength()",
			"blockSize must be at least the prefix length of cidr: a block is a part of the pool"},
		{"has(self.blockSize) == has(oldSelf.blockSize) && (!has(self.blockSize) || self.blockSize == oldSelf.blockSize)",
			"blockSize: field is immutable"},
	}},
	"IPPool.spec.cidr":         prefix,
	"IPPool.spec.nodeSelector": {Default: "all()", MaxLength: length(4096)},
	"IPPool.spec.vxlanMode":    {Enum: []any{"", api.EncapAlways, api.EncapCrossSubnet, api.EncapNever}},
	"IPPool.spec.ipipMode": only("self == '' || self == 'Never'",
		"only Never is possible: there is no IPIP back end; use vxlanMode, and ipipMode: Never or none"),
	"IPPool.spec.allowedUses": {MaxItems: length(1), Validations: []rule{{"self.all(use, use == 'Workload')",
		"only [Workload] is possible: pools give addresses to pods, not to tunnels or load balancers"}}},
	"IPPool.spec.allowedUses[]": {MaxLength: length(16)},
	"IPPool.spec.assignmentMode": only("self == '' || self == 'Automatic'",
		"only Automatic is possible: pools are used for every pod; use disabled: true to keep a pool out of use"),
	"IPPool.spec.namespaceSelector": only("self.trim() in ['', 'all()']",
		"only all() is possible: pools are chosen by node, not by namespace"),
	"IPPool.spec.disableBGPExport": {Validations: []rule{{"!self", "true is not possible: no pool is exported by BGP"}}},

	"IPAMBlock.spec.cidr": prefix,
	"IPAMBlock.spec.affinity": {
		Pattern: `^host:[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`, MaxLength: length(258), Validations: []rule{immutable}},

	"FabricConfiguration": {Validations: []rule{{"self.metadata.name == '" + api.FabricConfigurationName + "'",
		"metadata.name must be " + api.FabricConfigurationName + ": a cluster has one FabricConfiguration"}}},
	"FabricConfiguration.spec":              {Default: object{}},
	"FabricConfiguration.spec.preference":   {Default: api.Backends(), MaxItems: length(16)},
	"FabricConfiguration.spec.preference[]": {Enum: anys(api.Backends())},
	"FabricConfiguration.spec.egressToOwnNode": {Default: api.EnforceEgressToOwnNode,
		Enum: []any{api.EnforceEgressToOwnNode, api.AllowEgressToOwnNode}},
	"FabricConfiguration.spec.vxlan":      {Default: object{}},
	"FabricConfiguration.spec.vxlan.vni":  {Default: api.DefaultVNI, Minimum: length(1), Maximum: length(1<<24 - 1)},
	"FabricConfiguration.spec.vxlan.port": {Default: api.DefaultVXLANPort, Minimum: length(1), Maximum: length(1<<16 - 1)},
}

// sets are lists that hold nothing twice.
var sets = map[string]bool{"FabricConfiguration.spec.preference": true}

var immutable = rule{"self == oldSelf", "field is immutable"}

// prefix is a prefix in canonical form that may not change.
var prefix = limits{MaxLength: length(43), Validations: []rule{
	{"isCIDR(self) && string(cidr(self).masked()) == self", "must be a prefix in canonical form, such as 10.244.0.0/16 or fd00:10:244::/56"},
	immutable,
}}

func only(condition, message string) limits {
	return limits{MaxLength: length(64), Validations: []rule{{condition, message}}}
}

func length(n int) *int { return &n }

func anys[T any](values []T) []any {
	var out []any
	for _, v := range values {
		out = append(out, v)
	}
	return out
}

// column is a column of `kubectl get`.
type column struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Path     string `json:"jsonPath"`
	Priority int    `json:"priority,omitempty"` // above 0: only with -o wide
}

var columns = map[string][]column{
	"IPPool": {
		{Name: "CIDR", Type: "string", Path: ".spec.cidr"},
		{Name: "BlockSize", Type: "integer", Path: ".spec.blockSize"},
		{Name: "NAT", Type: "boolean", Path: ".spec.natOutgoing"},
		{Name: "Disabled", Type: "boolean", Path: ".spec.disabled"},
		{Name: "VXLAN", Type: "string", Path: ".spec.vxlanMode", Priority: 1},
		{Name: "Selector", Type: "string", Path: ".spec.nodeSelector", Priority: 1},
	},
	"IPAMBlock": {
		{Name: "CIDR", Type: "string", Path: ".spec.cidr"},
		{Name: "Affinity", Type: "string", Path: ".spec.affinity"},
	},
	"FabricConfiguration": {{Name: "Preference", Type: "string", Path: ".spec.preference"}},
}
