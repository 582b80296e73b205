package api

// The names of the back ends, as they stand in FabricConfiguration's
// preference and in a node's Receives.
const (
	BackendVXLAN  = "vxlan"
	BackendHostGW = "host-gw"
)

// Backends lists every back end, in the default order of preference.
func Backends() []string { return []string{BackendVXLAN, BackendHostGW} }
