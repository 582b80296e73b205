package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/lab/tool"
)

// Where things are inside a lab's namespaces.
const (
	binDir     = "/run/twill-lab-bin"
	scratchDir = "/run/twill-lab-scratch"
	cniBinDir  = "/opt/cni/bin"

	// loopbackPlugin is what containerd sets lo up with (Debian:
	// containernetworking-plugins).
	loopbackPlugin = "/usr/lib/cni/loopback"
)

// AgentMetrics is where a node's agent tells its metrics, on the node.
const AgentMetrics = "http://127.0.0.1:9841/metrics"

// The executables of a lab, which lie in one directory.
const (
	twillExecutable = "twill"
	cniExecutable   = "twill-cni"
	labExecutable   = "twill-lab"
)

var executables = []string{twillExecutable, cniExecutable, labExecutable}

// searchPath is PATH inside: the lab's own programs come first, so that ping
// and wget are the same on every machine.
const searchPath = binDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// furniture is what a space needs in its file system.
type furniture struct {
	mark        string // see space.Tmpfs
	executables string // the host's directory
	labDir      string // made visible inside if not empty
	node        bool   // has what is expected of a node's file system
	kubernetes  bool   // has what a kubelet and a container runtime need
}

// furnish is called on the space's thread. /run is empty but for what is ours;
// /etc (and on nodes /opt and /var/lib) shows the host's and keeps what is
// written for itself.
func (f furniture) furnish() error {
	if err := f.run(); err != nil {
		return err
	}
	if err := f.directories(); err != nil {
		return err
	}
	if f.kubernetes {
		return f.furnishKubelet()
	}
	return space.Sysfs()
}

// run mounts a /run, with the lab's programs.
func (f furniture) run() error {
	opened := map[string]space.Handle{}
	for _, name := range executables {
		h, err := space.Open(filepath.Join(f.executables, name))
		if err != nil {
			return err
		}
		defer h.Close()
		opened[filepath.Join(binDir, name)] = h
	}
	if f.labDir != "" {
		h, err := space.Open(f.labDir)
		if err != nil {
			return err
		}
		defer h.Close()
		opened[f.labDir] = h
	}
	if err := space.Tmpfs("/run", f.mark); err != nil {
		return err
	}
	for target, h := range opened {
		if err := h.Bind(target, target != f.labDir); err != nil {
			return err
		}
	}
	for _, name := range tool.Names() {
		if err := os.Symlink(labExecutable, filepath.Join(binDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// furnishKubelet gives a node what containers are made of. A runtime's layers
// can't lie on an overlay.
func (f furniture) furnishKubelet() error {
	if err := seeCgroups(); err != nil {
		return err
	}
	for _, dir := range []string{containerdDir, kubeletDir, "/var/log", "/etc/kubernetes"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := space.Tmpfs(dir, f.mark); err != nil {
			return err
		}
	}
	return space.Share()
}

func (f furniture) directories() error {
	shadowed := []string{"/etc"}
	if f.node {
		shadowed = append(shadowed, "/opt", "/var/lib")
	}
	for _, dir := range shadowed {
		if err := space.Overlay(dir, filepath.Join(scratchDir, strings.ReplaceAll(dir, "/", "_"))); err != nil {
			return err
		}
	}
	if !f.node {
		return nil
	}
	// A machine that is itself a node must not show through.
	for _, dir := range []string{"/etc/cni", "/opt/cni", "/var/lib/twill"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := space.Tmpfs(dir, f.mark); err != nil {
			return err
		}
	}
	plugin := filepath.Join(binDir, cniExecutable)
	if f.kubernetes {
		plugin = loopbackPlugin // the network's own is installed by its agent
	}
	h, err := space.Open(plugin)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Bind(filepath.Join(cniBinDir, filepath.Base(plugin)), true)
}

// host is one line of /etc/hosts.
type host struct {
	name      string
	addresses []netip.Addr
}

// writeNames writes what a resolver reads, on the space's thread.
func writeNames(hosts []host, resolver string) error {
	var text strings.Builder
	text.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	for _, h := range hosts {
		for _, a := range h.addresses {
			fmt.Fprintf(&text, "%s %s\n", a, h.name)
		}
	}
	for path, content := range map[string]string{"/etc/hosts": text.String(), "/etc/resolv.conf": resolver} {
		// It may be a link into a /run that is not seen here.
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// podResolver is a pod's resolv.conf, as kubelet writes it for ClusterFirst.
func podResolver(namespace string, servers []netip.Addr) string {
	var text strings.Builder
	for _, a := range servers {
		fmt.Fprintf(&text, "nameserver %s\n", a)
	}
	fmt.Fprintf(&text, "search %s.svc.%s svc.%s %s\noptions ndots:5 timeout:1\n", namespace, clusterName, clusterName, clusterName)
	return text.String()
}
