// Package plan is a node's whole desired state as data: devices, routes,
// neighbours, nftables chains, sets and elements. A Planner computes it from
// intent; the dataplane makes it true; `twill plan` prints it; tests compare
// it with what the kernel reports.
//
// It never does I/O, reads no clock and knows no kernel: the same intent gives
// the same plan, in whichever order it arrived.
package plan
