// Package preflight says what of a host would keep it from being a good node, and
// what to do about each: what guides to kubeadm have people look at by hand, and
// what Twill itself needs of the kernel.
//
// Read looks at the host; each check judges what was read, one file a concern. It
// changes nothing; Fix sets the sysctls that findings name, and nothing else.
package preflight

import (
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
)

// Facts is what a host is.
type Facts struct {
	Name     string // its own, or the one that it is to have as a node
	Resolved []netip.Addr
	Underlay fabric.Underlay
	// NoUnderlay says why there is none.
	NoUnderlay string
	Tunnels    []uint16 // UDP ports on which the node receives tunnels
	Kubelet    bool     // the node has a kubelet, or is to have one
	PodCIDRs   []netip.Prefix
	Services   []netip.Prefix

	Files     fs.FS           // its file system
	Processes map[string]bool // by the name that the kernel knows them by
	Sysctls   map[string]string
	Links     []Link
	Addresses []Address
	Routes    []Route
	Rules     []nft.Foreign
	Kernel    Kernel
	// Synchronised says that something keeps the clock right.
	Synchronised bool
}

// Link is a network device.
type Link struct {
	Name, Kind string
	Index, MTU int
	VNI, Port  int // of a vxlan
}

// Address is that of a device, with the length of its network.
type Address struct {
	Link   string
	Prefix netip.Prefix
}

// Route is one that is not the default route.
type Route struct {
	Link string
	To   netip.Prefix
	Ours bool
}

// Kernel is what the kernel could not do when it was tried in a namespace made
// for that; empty: it could.
type Kernel struct{ Nftables, Conntrack, Veth, VXLAN, IPv6 string }

// Finding is something that is wrong.
type Finding struct {
	Code    health.Code `json:"code"`
	Level   string      `json:"level"` // Error or Warning
	Detail  string      `json:"detail"`
	Remedy  string      `json:"remedy"`
	Setting *Setting    `json:"setting,omitempty"` // that Fix sets
}

// The levels of findings. A host with an error is no good node.
const (
	Error   = "error"
	Warning = "warning"
)

// Setting is a sysctl and the value that it should have.
type Setting struct {
	Path  string `json:"path"` // below /proc/sys
	Value string `json:"value"`
}

func found(code health.Code, format string, args ...any) Finding {
	d, _ := health.LookupHost(code)
	level := Error
	if d.Warning {
		level = Warning
	}
	return Finding{Code: code, Level: level, Detail: fmt.Sprintf(format, args...), Remedy: d.Remedy}
}

func (f Finding) with(path, value string) Finding {
	f.Setting = &Setting{path, value}
	return f
}

// Result is what a check came to: what it saw, and what is wrong with that.
type Result struct {
	Check    string    `json:"check"`
	Seen     string    `json:"seen"`
	Findings []Finding `json:"findings"`
}

// check judges one concern.
type check struct {
	name  string
	judge func(*Facts) (seen string, findings []Finding)
}

var checks = []check{
	{"name", checkName},
	{"address", checkAddress},
	{"mtu", checkMTU},
	{"ranges", checkRanges},
	{"swap", checkSwap},
	{"selinux", checkSELinux},
	{"clock", checkClock},
	{"firewall", checkFirewall},
	{"packets", checkPackets},
	{"sysctls", checkSysctls},
	{"runtime", checkRuntime},
	{"cgroups", checkCgroups},
	{"networks", checkNetworks},
	{"services", checkServices},
	{"kernel", checkKernel},
}

// Judge runs all checks.
func Judge(f *Facts) []Result {
	var out []Result
	for _, c := range checks {
		seen, findings := c.judge(f)
		out = append(out, Result{c.name, seen, append([]Finding{}, findings...)})
	}
	return out
}

// Findings are those of all checks.
func Findings(results []Result) (all []Finding) {
	for _, r := range results {
		all = append(all, r.Findings...)
	}
	return all
}

// Failed says whether something has to be changed.
func Failed(results []Result) bool {
	return slices.ContainsFunc(Findings(results), func(f Finding) bool { return f.Level == Error })
}

// text is the content of a file, empty if it can't be read.
func (f *Facts) text(path string) string {
	b, err := fs.ReadFile(f.Files, path)
	if err != nil {
		return ""
	}
	return string(b)
}

func (f *Facts) exists(path string) bool {
	_, err := fs.Stat(f.Files, path)
	return err == nil
}
