package lab

import (
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/twill-net/twill/lab/space"
)

// node is a space on the switch with an agent in it.
type node struct {
	name      string
	addresses []netip.Addr
	space     *space.Space
	furniture furniture
	agent     *process
	runtime   *process // only with Kubernetes: containerd
	kubelet   *process // only with Kubernetes
}

func (c *Config) nameServers() []netip.Addr {
	if c.DualStack {
		return []netip.Addr{dnsAddress4, dnsAddress6}
	}
	return []netip.Addr{dnsAddress4}
}

// makeHost makes a space on the switch.
func makeHost(cfg *Config, sw *space.Space, name string, number int, f furniture) (*space.Space, error) {
	s, err := space.New(name)
	if err != nil {
		return nil, err
	}
	if err = plug(cfg, sw, s, name, number); err == nil {
		err = s.Do(func() error {
			if err := f.furnish(); err != nil {
				return err
			}
			var hosts []host
			for i, name := range cfg.NodeNames() {
				hosts = append(hosts, host{name, cfg.NodeAddresses(i)})
			}
			hosts = append(hosts, host{"outside", cfg.OutsideAddresses()})
			return writeNames(hosts, "# a lab's hosts ask no name server\n")
		})
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func makeNode(cfg *Config, sw *space.Space, index int) (*node, error) {
	n := &node{name: NodeName(index), addresses: cfg.NodeAddresses(index)}
	n.furniture = furniture{
		mark: mark(cfg.Name) + "/" + n.name, executables: cfg.Executables, labDir: dir(cfg.Name), node: true, kubernetes: cfg.Kubernetes != "",
	}
	var err error
	if n.space, err = makeHost(cfg, sw, n.name, firstNode+index, n.furniture); err != nil {
		return nil, err
	}
	n.agent = &process{
		name: "agent of " + n.name, space: n.space, log: LogPath(cfg.Name, "agent-"+n.name),
		env: hostEnvironment(),
		argv: []string{filepath.Join(binDir, twillExecutable), "agent",
			"--node-name", n.name, "--etcd-endpoints", cfg.etcdURL(), "--service-cidr", join(cfg.serviceNets())},
	}
	if cfg.NAT { // the default route leads to another address than the node's
		n.agent.argv = append(n.agent.argv, "--node-ip", join(n.addresses))
	}
	return n, nil
}

func hostEnvironment() []string { return []string{"PATH=" + searchPath, "HOME=/root"} }

// ready tells whether pods can be attached. That the agent's socket is there is
// not enough: a killed agent leaves it, and a new one may not know all yet.
func (n *node) ready() bool { return cniStatus(n.space) == nil }

func join[T interface{ String() string }](items []T) string {
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = item.String()
	}
	return strings.Join(texts, ",")
}
