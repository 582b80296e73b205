// Package route makes the devices, addresses, neighbours, forwarding entries,
// routes and sysctls of a plan true, over rtnetlink and /proc/sys.
//
// A [Kernel] keeps a belief of what the kernel has of ours: read once, then
// corrected by every write of ours and every notification. Applying a plan
// writes the difference between the plan's dirty keys and that belief, so its
// cost follows what changed. Notifications that contradict the belief are
// drift: the keys become dirty again and the next Apply mends them.
//
// Ours are: routes with plan.RouteProtocol, the devices named by plan, and all
// permanent neighbours, forwarding entries and addresses on these devices
// (IPv6 link-local addresses excepted, which the kernel makes itself). The
// package never changes anything else, never creates or deletes the veth pairs
// of pods (package pod does), and never decides what ought to be.
package route
