package plan

import "strconv"

// ConntrackMax is the sysctl that bounds how many connections are tracked. Of it
// alone the plan's value is the least that will do: who has set more needs more.
const ConntrackMax = "net/netfilter/nf_conntrack_max"

// What kube-proxy asks of connection tracking by default.
const (
	trackedPerCPU      = 32768
	trackedAtLeast     = 131072
	establishedSeconds = 86400 // the kernel's 5 days keep what nobody uses
	closeWaitSeconds   = 3600  // the kernel's minute forgets who still sends to an end that has closed
)

// planConntrack asks for what a node that serves Services needs of connection
// tracking, which then each connection to them goes through.
func planConntrack(p *Plan, cpus int64, off bool) {
	for path, value := range map[string]int64{
		ConntrackMax: max(cpus*trackedPerCPU, trackedAtLeast),
		"net/netfilter/nf_conntrack_tcp_timeout_established": establishedSeconds,
		"net/netfilter/nf_conntrack_tcp_timeout_close_wait":  closeWaitSeconds,
	} {
		setOrDelete(p.Sysctls, path, strconv.FormatInt(value, 10), !off)
	}
}
