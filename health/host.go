package health

// Codes of what can be wrong with a host that is to become a node, or is one:
// `twill preflight` looks for them.
const (
	NameInvalid         Code = "NameInvalid"
	NameUnresolved      Code = "NameUnresolved"
	NodeAddressMissing  Code = "NodeAddressMissing"
	SwapOn              Code = "SwapOn"
	SELinuxEnforcing    Code = "SELinuxEnforcing"
	ClockUnsynchronised Code = "ClockUnsynchronised"
	FirewallRuns        Code = "FirewallRuns"
	PacketsDropped      Code = "PacketsDropped"
	PacketsPerhapsDrop  Code = "PacketsPerhapsDropped"
	ForwardingOff       Code = "ForwardingOff"
	BridgeNotFiltered   Code = "BridgeNotFiltered"
	ReversePathStrict   Code = "ReversePathStrict"
	RuntimeMissing      Code = "RuntimeMissing"
	RuntimeWithoutCRI   Code = "RuntimeWithoutCRI"
	RuntimeLooksAside   Code = "RuntimeLooksElsewhere"
	LoopbackMissing     Code = "LoopbackPluginMissing"
	OtherNetworkFirst   Code = "OtherNetworkFirst"
	OtherNetworkLeft    Code = "OtherNetworkLeft"
	ServiceProxyRuns    Code = "ServiceProxyRuns"
	CgroupDriverDiffers Code = "CgroupDriverDiffers"
	NftablesMissing     Code = "NftablesMissing"
	ConntrackMissing    Code = "ConntrackMissing"
	VethMissing         Code = "VethMissing"
	VXLANMissing        Code = "VXLANMissing"
	VXLANTaken          Code = "VXLANTaken"
	IPv6Missing         Code = "IPv6Missing"
	RangesOverlap       Code = "RangesOverlap"
	MTUSmall            Code = "MTUSmall"
)

// HostDefinition describes what can be wrong with a host.
type HostDefinition struct {
	Definition
	// Warning says that a node can do its work all the same.
	Warning bool
}

// WatchedByAgent are the codes of what can be wrong with a host for which a running
// agent looks, too.
var WatchedByAgent = []Code{PacketsDropped}

var hostDefinitions = []HostDefinition{
	{Definition{NameInvalid, "the host's name can't be a node's",
		"give each node a name of its own in lower case: `hostnamectl set-hostname NAME`"}, false},
	{Definition{NameUnresolved, "the host's name does not lead to the node's address",
		"add all nodes to `/etc/hosts` of all nodes, or to the name server"}, true},
	{Definition{NodeAddressMissing, "it can't be told at which address the other nodes reach this one",
		"add a default route, or say --node-ip here and `TWILL_NODE_IP` to the agent"}, false},
	{Definition{SwapOn, "memory is swapped; the kubelet refuses to start unless its `failSwapOn` is false",
		"`swapoff -a`, and take the lines with swap out of `/etc/fstab`"}, false},
	{Definition{SELinuxEnforcing, "SELinux enforces its policy; the agent is privileged and works, other pods with host paths may not",
		"install container-selinux, or `setenforce 0` and `SELINUX=permissive` in `/etc/selinux/config`"}, true},
	{Definition{ClockUnsynchronised, "nothing keeps the clock right; certificates and leases depend on it",
		"run a time service, such as chrony or systemd-timesyncd"}, true},
	{Definition{FirewallRuns, "a firewall is in force that may load its rules again at any time",
		"turn it off, or have it keep what nodes and pods need open for good"}, true},
	{Definition{PacketsDropped, "somebody's rules drop packets that nodes or pods need",
		"let them in, in the chain that is named"}, false},
	{Definition{PacketsPerhapsDrop, "somebody's rules drop packets that nodes or pods need, unless a condition holds that can't be judged from here",
		"read the chain that is named, and make sure that it lets them in"}, true},
	{Definition{ForwardingOff, "the kernel does not forward packets; the agent turns this on, but kubeadm refuses such a host",
		"--fix does it, and `net.ipv4.ip_forward = 1` in `/etc/sysctl.d` keeps it"}, true},
	{Definition{BridgeNotFiltered, "packets between ports of a bridge pass by the rules; pods of Twill use no bridge, but kubeadm before 1.30 refuses such a host",
		"--fix does it, and `net.bridge.bridge-nf-call-iptables = 1` in `/etc/sysctl.d` keeps it"}, true},
	{Definition{ReversePathStrict, "packets are dropped that come in another way than answers go; the agent loosens this for the node's device",
		"--fix does it; make sure that nothing in `/etc/sysctl.d` sets it back"}, true},
	{Definition{RuntimeMissing, "no container runtime listens",
		"install containerd or CRI-O and start it"}, false},
	{Definition{RuntimeWithoutCRI, "the container runtime was told not to serve the kubelet",
		"take \"cri\" out of `disabled_plugins` in `/etc/containerd/config.toml` and start containerd again"}, false},
	{Definition{RuntimeLooksAside, "the container runtime looks for networks elsewhere than Twill writes them",
		"set its directories back, or change both host paths and both flags of the DaemonSet"}, false},
	{Definition{LoopbackMissing, "containerd before 2.0 can't start a pod without the plugin `loopback`",
		"install the reference plugins: containernetworking-plugins, or kubernetes-cni"}, true},
	{Definition{OtherNetworkFirst, "the configuration of another network sorts before Twill's, so the runtime would take that",
		"remove the other network, then its file in `/etc/cni/net.d`"}, false},
	{Definition{OtherNetworkLeft, "something of another network is on this host",
		"remove the other network if it is not needed; a reboot removes devices"}, true},
	{Definition{ServiceProxyRuns, "kube-proxy's rules are in the kernel; Twill leaves Services to it while it runs, and what it leaves behind translates them all the same",
		"nothing, if kube-proxy is to stay; else delete its DaemonSet, then `kube-proxy --cleanup`, or reboot"}, true},
	{Definition{CgroupDriverDiffers, "the kubelet and the container runtime manage cgroups differently",
		"give both the same driver, `systemd` where systemd runs"}, false},
	{Definition{NftablesMissing, "the kernel refuses rules that Twill writes: neither Services nor policies nor masquerading work",
		"load or build nf_tables with inet, nat, masq, fib, hash, numgen and set types; read the detail"}, false},
	{Definition{ConntrackMissing, "connections can't be looked at: the agent does not start",
		"load or build nf_conntrack_netlink"}, false},
	{Definition{VethMissing, "the kernel has no veth: pods can't be attached",
		"load or build veth"}, false},
	{Definition{VXLANMissing, "the kernel has no vxlan: only host-gw is left, which needs all nodes on one link",
		"load or build vxlan, or put all nodes on one link"}, true},
	{Definition{VXLANTaken, "another tunnel device has the identifier and the port that Twill's would have",
		"remove the device, or give Twill another identifier or port (FabricConfiguration)"}, false},
	{Definition{IPv6Missing, "there is no IPv6, and a range of IPv6 is asked for",
		"turn IPv6 on (`ipv6.disable`, `net.ipv6.conf.all.disable_ipv6`), or leave the range out"}, false},
	{Definition{RangesOverlap, "a range of pods or services has addresses that are in use",
		"choose another range, before the cluster is made"}, false},
	{Definition{MTUSmall, "the node's device carries small packets only; with a tunnel, pods get less than IPv6 needs (1280)",
		"raise the MTU of the device, or use host-gw"}, true},
}

// HostDefinitions lists all that can be wrong with a host.
func HostDefinitions() []HostDefinition { return hostDefinitions }

// LookupHost finds the definition of what can be wrong with a host.
func LookupHost(code Code) (HostDefinition, bool) {
	for _, d := range hostDefinitions {
		if d.Code == code {
			return d, true
		}
	}
	return HostDefinition{}, false
}
