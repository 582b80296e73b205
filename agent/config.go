package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/twill-net/twill/plan"
)

// Config is an agent's configuration.
type Config struct {
	// NodeName is the name of the node's object; default the host's name.
	NodeName string
	// NodeIPs are the node's addresses, at most one of a family; none:
	// those of the device with the default route.
	NodeIPs []netip.Addr
	// StateDir keeps the journal of addresses.
	StateDir string
	// RunDir holds the CNI socket.
	RunDir string
	// CNIBinDir and CNIConfDir are where the container runtime looks for
	// executables and for network configuration; empty: they are not touched.
	CNIBinDir, CNIConfDir string
	// ExternalIPs are the ranges in which Services may take external IPs. Anybody
	// who may write a Service could else take over any address
	// (CVE-2020-8554).
	ExternalIPs []netip.Prefix
	// ServiceCIDRs are the ranges of cluster IPs; empty: what Kubernetes says, if
	// there is one.
	ServiceCIDRs []netip.Prefix
	// Addresses says of which ranges pods get addresses: AddressesAuto,
	// AddressesOfNode or AddressesOfPools.
	Addresses string
	// Services says whether the agent serves Services: ServicesAuto, ServicesOn or
	// ServicesOff.
	Services string
	// MetricsAddress serves /metrics and /healthz; empty: not served.
	MetricsAddress string
}

// The values of Config.Addresses.
const (
	AddressesAuto    = "auto"  // of the node's spec.podCIDRs that lie in a pool, else of pools
	AddressesOfNode  = "node"  // of the node's spec.podCIDRs
	AddressesOfPools = "pools" // of any block that the node claims
)

// DefaultConfig is what holds where nothing is said.
func DefaultConfig() Config {
	return Config{StateDir: plan.StateDir, RunDir: plan.RunDir, MetricsAddress: "127.0.0.1:9841", Services: ServicesAuto, Addresses: AddressesAuto}
}

// Socket is the path of the CNI socket.
func (c Config) Socket() string { return filepath.Join(c.RunDir, plan.CNISocket) }

// SysctlOriginals is the file with the values that sysctls had before the agent
// set them.
func (c Config) SysctlOriginals() string { return filepath.Join(c.RunDir, plan.SysctlOriginals) }

// Validate lists everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if problems := validation.IsDNS1123Subdomain(c.NodeName); len(problems) > 0 {
		errs = append(errs, fmt.Errorf("node name %q: %s", c.NodeName, strings.Join(problems, "; ")))
	}
	if !slices.Contains([]string{ServicesAuto, ServicesOn, ServicesOff}, c.Services) {
		errs = append(errs, fmt.Errorf("services %q: use %s, %s or %s", c.Services, ServicesAuto, ServicesOn, ServicesOff))
	}
	if !slices.Contains([]string{AddressesAuto, AddressesOfNode, AddressesOfPools}, c.Addresses) {
		errs = append(errs, fmt.Errorf("addresses %q: use %s, %s or %s", c.Addresses, AddressesAuto, AddressesOfNode, AddressesOfPools))
	}
	seen := map[bool]netip.Addr{}
	for _, ip := range c.NodeIPs {
		if other, ok := seen[ip.Is6()]; ok {
			errs = append(errs, fmt.Errorf("node addresses %s and %s: give at most one of a family", other, ip))
		}
		seen[ip.Is6()] = ip
	}
	for what, dir := range map[string]string{"state": c.StateDir, "run": c.RunDir, "CNI binary": c.CNIBinDir, "CNI configuration": c.CNIConfDir} {
		if optional := strings.HasPrefix(what, "CNI "); !filepath.IsAbs(dir) && !(optional && dir == "") {
			errs = append(errs, fmt.Errorf("%s directory %q: give an absolute path", what, dir))
		}
	}
	return errors.Join(errs...)
}
