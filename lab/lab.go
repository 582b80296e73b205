// Package lab makes a cluster on one machine: each node is a set of kernel
// namespaces with the real agent in it, pods are attached by the real CNI
// executable, and the store is an embedded etcd. One process, the supervisor,
// holds everything; whichever way it ends, the cluster ends with it. The other
// functions talk to it over a socket.
//
// It never uses or changes the network of the host, and writes nothing outside
// the lab's directory below /run.
package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// DefaultName is the name of a lab for which none is given.
const DefaultName = "lab"

// root is where labs have their directories.
const root = "/run/twill-lab"

const (
	maxNodes    = 150
	clusterName = "cluster.local"
)

// Config says what lab to make.
type Config struct {
	Name      string
	Nodes     int
	DualStack bool
	// NAT gives each node an older second device with the same address on every
	// node, by which the default routes go, as Vagrant does. Agents are given
	// --node-ip.
	NAT bool
	// Pools are the ranges of pod addresses, at most one of a family; the
	// first is IPv4. Empty: 10.244.0.0/16 and, in a dual-stack lab,
	// fd00:10:244::/56.
	Pools []netip.Prefix
	// Kubernetes is the directory of Kubernetes' programs and of images, as "make
	// kubernetes" fills it; then the lab is a real cluster, without a network.
	// Empty: pods are the lab's own.
	Kubernetes string
	// KubeProxy has Kubernetes' own kube-proxy serve Services, in its nftables mode.
	KubeProxy bool
	// Executables is the directory that holds twill, twill-cni and twill-lab.
	// Empty: where the running executable is.
	Executables string
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// CheckName says what is wrong with the name of a lab.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("lab name %q: use at most 32 lower-case letters, digits and inner dashes", name)
	}
	return nil
}

// Check says what is wrong with what a user has asked for.
func (c Config) Check() error {
	c.Pools = slices.Clone(c.Pools)
	return c.completeWishes()
}

func (c *Config) completeWishes() error {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if err := CheckName(c.Name); err != nil {
		return err
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return fmt.Errorf("%d nodes: a lab has 1 to %d", c.Nodes, maxNodes)
	}
	return c.completePools()
}

// complete sets what was left empty and refuses what can't be.
func (c *Config) complete() error {
	if err := c.completeWishes(); err != nil {
		return err
	}
	if c.Executables == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find own executable: %w", err)
		}
		c.Executables = filepath.Dir(self)
	}
	var err error
	if c.Executables, err = filepath.Abs(c.Executables); err != nil {
		return err
	}
	if err := c.completeKubernetes(); err != nil {
		return err
	}
	for _, name := range executables {
		path := filepath.Join(c.Executables, name)
		if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 {
			return fmt.Errorf("there is no executable %s: the lab needs %v in one directory; run \"make build\"", path, executables)
		}
	}
	return nil
}

func (c *Config) completePools() error {
	defaults := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	if c.DualStack {
		defaults = append(defaults, netip.MustParsePrefix("fd00:10:244::/56"))
	}
	seen := map[bool]bool{}
	for _, p := range c.Pools {
		is4 := p.Addr().Is4()
		switch {
		case p != p.Masked():
			return fmt.Errorf("pool %s has address bits beyond its prefix: write %s", p, p.Masked())
		case seen[is4]:
			return fmt.Errorf("pool %s is the second of its family: give one for IPv4 and one for IPv6", p)
		case !is4 && !c.DualStack:
			return fmt.Errorf("pool %s is IPv6: add --dual-stack", p)
		}
		seen[is4] = true
	}
	for _, p := range defaults {
		if !seen[p.Addr().Is4()] {
			c.Pools = append(c.Pools, p)
		}
	}
	// Pods list their IPv4 address first.
	slices.SortStableFunc(c.Pools, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	for _, p := range c.Pools {
		for _, other := range c.reserved() {
			if p.Overlaps(other) {
				return fmt.Errorf("pool %s overlaps %s, which the lab uses for nodes or services", p, other)
			}
		}
	}
	return nil
}

// The lab's own addresses.
var (
	nodeNet4    = netip.MustParsePrefix("172.16.10.0/24")
	nodeNet6    = netip.MustParsePrefix("fd00:172:16:10::/64")
	serviceNet4 = netip.MustParsePrefix("10.1.0.0/16")
	serviceNet6 = netip.MustParsePrefix("fd00:10:1::/112")
	natNet4     = netip.MustParsePrefix("10.0.2.0/24")
	natNet6     = netip.MustParsePrefix("fd00:10:0:2::/64")
	dnsAddress4 = netip.MustParseAddr("10.1.0.10")
	dnsAddress6 = netip.MustParseAddr("fd00:10:1::10")
)

func (c *Config) reserved() []netip.Prefix {
	out := []netip.Prefix{nodeNet4, nodeNet6, serviceNet4, serviceNet6}
	if c.NAT {
		out = append(out, natNet4, natNet6)
	}
	return out
}

// serviceNets are the ranges of ClusterIPs.
func (c *Config) serviceNets() []netip.Prefix {
	if c.DualStack {
		return []netip.Prefix{serviceNet4, serviceNet6}
	}
	return []netip.Prefix{serviceNet4}
}

// Hosts are numbered by the last part of their address.
const (
	gatewayHost = 1
	firstNode   = 10
	outsideHost = 200

	natGateway = 2
	natHost    = 15
)

// hostPrefixes are the addresses of a host on the lab's link, with the link's
// prefix length: 172.16.10.N and, in a dual-stack lab, fd00:172:16:10::N where
// N is written the same.
func (c *Config) hostPrefixes(host int) []netip.Prefix {
	return c.numbered(nodeNet4, nodeNet6, host)
}

// natPrefixes are the same on the link between a node and its NAT.
func (c *Config) natPrefixes(host int) []netip.Prefix { return c.numbered(natNet4, natNet6, host) }

// NATAddresses are those of each node's NAT device, IPv4 first.
func (c *Config) NATAddresses() []netip.Addr {
	var out []netip.Addr
	for _, p := range c.natPrefixes(natHost) {
		out = append(out, p.Addr())
	}
	return out
}

func (c *Config) numbered(net4, net6 netip.Prefix, host int) []netip.Prefix {
	a4 := net4.Addr().As4()
	a4[3] = byte(host)
	out := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(a4), net4.Bits())}
	if c.DualStack {
		a6 := netip.MustParseAddr(fmt.Sprintf("%s%d", net6.Addr(), host))
		out = append(out, netip.PrefixFrom(a6, net6.Bits()))
	}
	return out
}

func (c *Config) hostAddresses(host int) []netip.Addr {
	var out []netip.Addr
	for _, p := range c.hostPrefixes(host) {
		out = append(out, p.Addr())
	}
	return out
}

// OutsideAddresses are those of the host outside the cluster.
func (c *Config) OutsideAddresses() []netip.Addr { return c.hostAddresses(outsideHost) }

// NodeName is the name of the node with this index: master, node01, node02 ...
func NodeName(index int) string {
	if index == 0 {
		return "master"
	}
	return fmt.Sprintf("node%02d", index)
}

// NodeNames are the names of all nodes.
func (c *Config) NodeNames() []string {
	names := make([]string, c.Nodes)
	for i := range names {
		names[i] = NodeName(i)
	}
	return names
}

// NodeAddresses are the addresses of the node with this index, IPv4 first.
func (c *Config) NodeAddresses(index int) []netip.Addr { return c.hostAddresses(firstNode + index) }

// dir is the lab's directory, all that it has on disk.
func dir(name string) string { return filepath.Join(root, name) }

// EtcdEndpoint is where the lab's store can be reached from the host.
func EtcdEndpoint(name string) string { return "unix://" + filepath.Join(dir(name), "etcd.sock") }

func socketPath(name string) string { return filepath.Join(dir(name), "sock") }

// LogPath is the log of a process of the lab: "supervisor", "etcd",
// "controller", "agent-NODE" or "pod-NAMESPACE-NAME".
func LogPath(lab, process string) string { return filepath.Join(dir(lab), "logs", process+".log") }

// mark is the mount source by which the lab's processes are found.
func mark(name string) string { return "twill-lab/" + name }

func (c *Config) save() error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir(c.Name), "lab.json"), append(text, '\n'), 0o644)
}

// Load reads the configuration of a lab that is up.
func Load(name string) (Config, error) {
	var c Config
	text, err := os.ReadFile(filepath.Join(dir(name), "lab.json"))
	if err != nil {
		if others, _ := filepath.Glob(filepath.Join(root, "*", "lab.json")); len(others) > 0 {
			return c, fmt.Errorf("there is no lab %q, but %q: choose it with --name", name, filepath.Base(filepath.Dir(others[0])))
		}
		return c, fmt.Errorf("there is no lab %q: make it with \"twill lab up\"", name)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("read lab.json of lab %q: %w", name, err)
	}
	return c, nil
}
