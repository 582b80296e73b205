package preflight

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/test/golden"
)

// host is one on which Twill would do well: its files, and a network namespace
// that is joined with another.
type host struct {
	t       *testing.T
	ns      *testnet.NS
	root    string
	options Options
}

func newHost(t *testing.T) *host {
	t.Helper()
	needs(t)
	h := &host{t: t, ns: testnet.New(t), root: t.TempDir()}
	peer := testnet.New(t)
	testnet.Pair(t, h.ns, peer, "eth0", "eth0")
	h.ns.Address(t, "eth0", "172.16.10.11/24")
	h.ns.Route(t, "0.0.0.0/0", "172.16.10.1")
	h.ns.Sysctl(t, "ipv4/ip_forward", "1")
	h.ns.Sysctl(t, "ipv4/conf/all/rp_filter", "0")
	h.ns.Sysctl(t, "ipv4/conf/eth0/rp_filter", "2")
	for path, text := range map[string]string{
		"etc/hosts":                       "127.0.0.1 localhost\n172.16.10.11 node01.example.com node01 # this one\n",
		"proc/swaps":                      "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
		"run/containerd/containerd.sock":  "",
		"opt/cni/bin/loopback":            "",
		"etc/cni/net.d/10-twill.conflist": "",
		"etc/containerd/config.toml":      "disabled_plugins = []\n[plugins.'io.containerd.grpc.v1.cri'.cni]\n  conf_dir = '/etc/cni/net.d'\n  bin_dir = \"/opt/cni/bin/\"\nSystemdCgroup = true # as the kubelet\n",
		"var/lib/kubelet/config.yaml":     "cgroupDriver: systemd\nfailSwapOn: true\n",
	} {
		h.file(path, text)
	}
	h.options = Options{
		Root: h.root, NodeName: "node01",
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
		Resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") },
	}
	return h
}

// needs skips a test that can't be run here.
func needs(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	for _, name := range []string{"ip", "nft", "iptables-nft", "iptables-legacy"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
}

func (h *host) file(path, text string) {
	h.t.Helper()
	path = filepath.Join(h.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) remove(path string) {
	h.t.Helper()
	if err := os.Remove(filepath.Join(h.root, path)); err != nil {
		h.t.Fatal(err)
	}
}

// program runs one in the host's namespace, as nft and iptables are used.
func (h *host) program(name string, args ...string) {
	h.t.Helper()
	if out, err := h.ns.Command(name, args...).CombinedOutput(); err != nil {
		h.t.Fatalf("%s: %v: %s", name, err, out)
	}
}

func (h *host) nft(rules string) { h.t.Helper(); h.program("nft", rules) }

// read returns the facts. What the machine of the test is like is set: its
// clock.
func (h *host) read() (f *Facts) {
	h.t.Helper()
	h.ns.Do(func() {
		var err error
		if f, err = Read(h.t.Context(), h.options); err != nil {
			h.t.Fatal(err)
		}
	})
	f.Synchronised = true
	return f
}

func TestGoodHostHasNoFindings(t *testing.T) {
	h := newHost(t)
	results := Judge(h.read())
	for _, f := range Findings(results) {
		t.Errorf("%+v", f)
	}
	for _, r := range results {
		t.Logf("%-10s %s", r.Check, r.Seen)
	}
}

// TestSampleAsksForAll: what the kernel is tried with is understood, and is no
// small part of what Twill writes.
func TestSampleAsksForAll(t *testing.T) {
	p, err := sample()
	if err != nil {
		t.Fatal(err)
	}
	begins := func(names []string, with string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, with) })
	}
	chains := slices.Sorted(maps.Keys(maps.Collect(p.Chains.All())))
	for _, want := range []string{"forward", "services", "affine-local4-", "postrouting", "untracked-in"} {
		if !begins(chains, want) {
			t.Errorf("there is no chain %s; there are %v", want, chains)
		}
	}
	sets := slices.Sorted(maps.Keys(maps.Collect(p.Sets.All())))
	for _, want := range []string{"affinity4-", "svc6", "svc-ranges4", "ep4", "to-pod", "pool-cidrs6"} {
		if !begins(sets, want) {
			t.Errorf("there is no set %s; there are %v", want, sets)
		}
	}
}

func show(results []Result) string {
	var b strings.Builder
	for _, f := range Findings(results) {
		fmt.Fprintf(&b, "%s %s: %s\n", f.Level, f.Code, f.Detail)
		if f.Setting != nil {
			fmt.Fprintf(&b, "    fix: %s=%s\n", f.Setting.Path, f.Setting.Value)
		}
	}
	return b.String()
}

// spoiled are hosts with one thing wrong each: by real objects of the kernel
// where a namespace has them, by files, and only where this kernel can't be made
// to lack something, by the facts themselves.
var spoiled = []struct {
	name  string
	spoil func(*host)
	facts func(*Facts)
}{
	{"its name is that of every host", func(h *host) { h.options.NodeName = "localhost" }, nil},
	{"its name is no name of a node", func(h *host) { h.options.NodeName = "Node_1" }, nil},
	{"its name leads nowhere", func(h *host) { h.file("etc/hosts", "127.0.0.1 localhost\n") }, nil},
	{"its name leads to itself only", func(h *host) { h.file("etc/hosts", "127.0.1.1 node01\n") }, nil},
	{"no default route", func(h *host) { h.program("ip", "route", "del", "default") }, nil},
	{"swap", func(h *host) {
		h.file("proc/swaps", "Filename Type Size\n/dev/sda2 partition 2097148\n/swapfile file 1024\n")
	}, nil},
	{"SELinux", func(h *host) { h.file("sys/fs/selinux/enforce", "1") }, nil},
	{"clock", nil, func(f *Facts) { f.Synchronised = false }},
	{"firewalld", func(h *host) { h.file("proc/4711/comm", "firewalld\n") }, nil},
	{"ufw", func(h *host) { h.file("etc/ufw/ufw.conf", "# /etc/ufw/ufw.conf\nENABLED=yes\nLOGLEVEL=low\n") }, nil},
	{"nftables lets in SSH only", func(h *host) {
		h.nft(`table inet filter {
			chain input { type filter hook input priority 0; policy drop;
				ct state established,related accept
				ct state vmap { established : accept, invalid : drop }
				iif lo accept
				iifname "lo" accept
				meta l4proto icmp accept
				tcp dport { 22, 80-443 } accept
				reject with icmpx admin-prohibited
			}
		}`)
	}, nil},
	{"nftables lets in the ports of whom it knows", func(h *host) {
		h.nft(`table inet filter {
			chain input { type filter hook input priority 0; policy drop;
				tcp dport 10250 accept
				ip saddr 172.16.10.0/24 udp dport 8472 accept
			}
		}`)
	}, nil},
	{"nftables has a chain of its own for forwarding", func(h *host) {
		h.nft(`table ip guard {
			chain deny {
				counter log drop
			}
			chain forward { type filter hook forward priority 10;
				oifname "eth*" jump deny
			}
		}`)
	}, nil},
	{"nftables drops node ports before they are translated", func(h *host) {
		h.nft(`table inet raw {
			chain pre { type filter hook prerouting priority raw; tcp dport 1024-65535 tcp dport != 10250 drop; }
		}`)
	}, nil},
	{"iptables lets out nothing", func(h *host) { h.program("iptables-nft", "-P", "OUTPUT", "DROP") }, nil},
	{"Docker's policy", func(h *host) {
		h.program("iptables-nft", "-P", "FORWARD", "DROP")
		h.program("iptables-nft", "-A", "FORWARD", "-o", "docker0", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
		h.program("iptables-nft", "-A", "FORWARD", "-i", "docker0", "-j", "ACCEPT")
	}, nil},
	{"iptables lets in single ports", func(h *host) {
		h.program("iptables-nft", "-A", "INPUT", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
		h.program("iptables-nft", "-A", "INPUT", "-p", "tcp", "-m", "multiport", "--dports", "22,10250:10259", "-j", "ACCEPT")
		h.program("iptables-nft", "-A", "INPUT", "-p", "udp", "--dport", "53", "-j", "ACCEPT")
		h.program("iptables-nft", "-A", "INPUT", "-j", "REJECT")
	}, nil},
	{"iptables-legacy", func(h *host) {
		h.program("iptables-legacy", "-N", "DENY")
		h.program("iptables-legacy", "-A", "DENY", "-p", "udp", "--dport", "8000:9000", "-j", "DROP")
		h.program("iptables-legacy", "-A", "INPUT", "!", "-i", "lo", "-j", "DENY")
		h.program("iptables-legacy", "-P", "FORWARD", "DROP")
	}, nil},
	{"no forwarding", func(h *host) { h.ns.Sysctl(h.t, "ipv4/ip_forward", "0") }, nil},
	{"bridges pass by the rules", nil, func(f *Facts) { f.Sysctls[bridgeRules] = "0" }},
	{"strict reverse path", func(h *host) {
		h.ns.Sysctl(h.t, "ipv4/conf/eth0/rp_filter", "0")
		h.ns.Sysctl(h.t, "ipv4/conf/all/rp_filter", "1")
	}, nil},
	{"no runtime", func(h *host) { h.remove("run/containerd/containerd.sock") }, nil},
	{"Docker's containerd", func(h *host) {
		h.file("etc/containerd/config.toml", "disabled_plugins = [\"cri\"]\nSystemdCgroup = true\n")
	}, nil},
	{"containerd with other directories", func(h *host) {
		h.file("etc/containerd/config.toml", "  bin_dir = \"/usr/lib/cni\"\n  conf_dir = \"/var/lib/cni/net.d\"\n            SystemdCgroup = true\n")
	}, nil},
	{"programs started with other files", func(h *host) {
		h.file("proc/4/cmdline", "/usr/bin/containerd\x00--config\x00/run/containerd.toml\x00")
		h.file("run/containerd.toml", "  conf_dir = \"/run/cni\"\n")
		h.file("proc/5/cmdline", "/usr/bin/kubelet\x00--config=/run/kubelet.yaml\x00--kubeconfig=/run/kubeconfig\x00")
		h.file("run/kubelet.yaml", "cgroupDriver: systemd\n")
	}, nil},
	{"CRI-O started with another file", func(h *host) {
		h.remove("run/containerd/containerd.sock")
		h.file("run/crio/crio.sock", "")
		h.file("proc/4/cmdline", "/usr/bin/crio\x00-c\x00/run/crio.conf\x00")
		h.file("run/crio.conf", "[crio.runtime]\ncgroup_manager = \"cgroupfs\"\n")
	}, nil},
	{"no loopback", func(h *host) { h.remove("opt/cni/bin/loopback") }, nil},
	{"flannel's file sorts behind", func(h *host) { h.file("etc/cni/net.d/80-flannel.conflist", "{}") }, nil},
	{"a file sorts before", func(h *host) { h.file("etc/cni/net.d/05-cilium.conflist", "{}") }, nil},
	{"flannel's device", func(h *host) {
		h.program("ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0")
	}, nil},
	{"kube-proxy", func(h *host) { h.nft("add table ip kube-proxy; add chain ip kube-proxy services") }, nil},
	{"kube-proxy by iptables", func(h *host) { h.program("iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES") }, nil},
	{"cgroup drivers", func(h *host) { h.file("var/lib/kubelet/config.yaml", "cgroupDriver: cgroupfs\n") }, nil},
	{"cgroup drivers with CRI-O", func(h *host) {
		h.remove("run/containerd/containerd.sock")
		h.file("run/crio/crio.sock", "")
		h.file("etc/crio/crio.conf.d/10-cgroup.conf", "[crio.runtime]\ncgroup_manager = \"cgroupfs\"\n")
	}, nil},
	{"kernel without anything", nil, func(f *Facts) {
		f.Kernel = Kernel{Nftables: "chain postrouting: operation not supported", Conntrack: "list connections: protocol not supported",
			Veth: "make a veth pair: operation not supported", VXLAN: "make a vxlan device: operation not supported", IPv6: "IPv6 is turned off"}
	}},
	{"no IPv6 for a range of it", func(h *host) {
		h.options.PodCIDRs = append(h.options.PodCIDRs, netip.MustParsePrefix("fd00:10:244::/56"))
	}, func(f *Facts) { f.Kernel.IPv6 = "IPv6 is turned off" }},
	{"pods where the node is", func(h *host) { h.options.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")} }, nil},
	{"services where a route leads", func(h *host) { h.ns.Route(h.t, "10.100.0.0/16", "172.16.10.2") }, nil},
	{"pods among services", func(h *host) { h.options.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.100.0.0/16")} }, nil},
	{"small packets", func(h *host) { h.program("ip", "link", "set", "eth0", "mtu", "1300") }, nil},
}

// TestSpoiledHosts holds what is said of each spoiled host against a file.
func TestSpoiledHosts(t *testing.T) {
	needs(t)
	var got strings.Builder
	seen := map[health.Code]bool{}
	for _, s := range spoiled {
		t.Run(s.name, func(t *testing.T) {
			h := newHost(t)
			if s.spoil != nil {
				s.spoil(h)
			}
			f := h.read()
			if s.facts != nil {
				s.facts(f)
			}
			results := Judge(f)
			if len(Findings(results)) == 0 {
				t.Error("nothing was found")
			}
			for _, f := range Findings(results) {
				seen[f.Code] = true
			}
			fmt.Fprintf(&got, "# %s\n%s", s.name, show(results))
		})
	}
	for _, d := range health.HostDefinitions() {
		if !seen[d.Code] {
			t.Errorf("no host was spoiled so that there is %s", d.Code)
		}
	}
	golden.Check(t, "testdata/spoiled.txt", got.String())
}

// TestFix sets what can be set, after which it is not found any more.
func TestFix(t *testing.T) {
	h := newHost(t)
	h.ns.Sysctl(t, "ipv4/ip_forward", "0")
	h.ns.Sysctl(t, "ipv4/conf/eth0/rp_filter", "1")
	var done []Setting
	h.ns.Do(func() {
		var err error
		if done, err = Fix(Judge(h.read())); err != nil {
			t.Fatal(err)
		}
	})
	want := []Setting{{ipForward, "1"}, {reversePath("eth0"), "2"}}
	if !slices.Equal(done, want) {
		t.Errorf("%v, want %v", done, want)
	}
	if left := Findings(Judge(h.read())); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

// TestTracesOfANodeAreNoFindings: a host that is a node already, with an agent
// and a kubelet, is as good as one that is none yet.
func TestTracesOfANodeAreNoFindings(t *testing.T) {
	h := newHost(t)
	for _, iptables := range []string{"iptables-nft", "iptables-legacy"} {
		h.program(iptables, "-N", "KUBE-FIREWALL")
		h.program(iptables, "-A", "INPUT", "-j", "KUBE-FIREWALL")
		h.program(iptables, "-A", "KUBE-FIREWALL", "!", "-s", "127.0.0.0/8", "-d", "127.0.0.0/8",
			"-m", "conntrack", "!", "--ctstate", "RELATED,ESTABLISHED,DNAT", "-j", "DROP")
	}
	h.program("ip", "link", "add", "twill-vxlan", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0")
	h.program("ip", "addr", "add", "169.254.1.1/32", "dev", "twill-vxlan")
	h.program("ip", "link", "set", "twill-vxlan", "up")
	h.program("ip", "route", "add", "10.244.1.0/26", "dev", "twill-vxlan", "proto", "84")
	h.program("ip", "route", "add", "blackhole", "10.244.0.0/26", "proto", "84")
	h.nft(`table inet twill {
		chain input { type filter hook input priority 0;
			drop
		}
	}`)
	if found := Findings(Judge(h.read())); len(found) > 0 {
		t.Errorf("%+v", found)
	}
}
