package plan

import "github.com/twill-net/twill/fabric"

// Every name and number that we own on a host, so that all that is ours can be
// found and removed by it (`twill cleanup`).
const (
	// NFTable is our nftables table, of family inet.
	NFTable = "twill"
	// RouteProtocol marks our routes (rtm_protocol). 84 is 'T'; iproute2's
	// rt_protos leaves the range around it free.
	RouteProtocol = 84
	// VethPrefix starts the name of the host end of each pod's pair.
	VethPrefix = "tw-"
	// VXLANLink is the tunnel device of the vxlan back end.
	VXLANLink = fabric.VXLANDevice
	// PodGateway4 and PodGateway6 are the next hops of every pod: link-local,
	// so that they take no address from a pool (RFC 3927, RFC 4291 §2.5.6).
	PodGateway4 = "169.254.1.1"
	PodGateway6 = "fe80::1"
	// PodGatewayMAC is the host end's address of every pair: fixed, so that the
	// pod's permanent neighbour entry stays true when a host end is made anew.
	PodGatewayMAC = "02:74:77:69:6c:6c"
)

// Files that we own on a host.
const (
	// CNIExecutable is what runtimes execute, in their directory of such.
	CNIExecutable = "twill-cni"
	// CNIConflist tells runtimes of it. It sorts before what other networks call
	// theirs: runtimes take the first.
	CNIConflist = "10-twill.conflist"
	// Journal is the journal of addresses in the agent's state directory; files
	// beside it begin with its name.
	Journal = "ipam.journal"
	// CNISocket and SysctlOriginals are in the agent's run directory.
	CNISocket       = "cni.sock"
	SysctlOriginals = "sysctl-originals"
	// StateDir, RunDir, CNIBinDir and CNIConfDir are where these are unless an agent
	// is told otherwise.
	StateDir   = "/var/lib/twill"
	RunDir     = "/run/twill"
	CNIBinDir  = "/opt/cni/bin"
	CNIConfDir = "/etc/cni/net.d"
)
