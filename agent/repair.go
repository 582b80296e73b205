package agent

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/pod"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/ipam"
)

// mendMissing takes out of err the pods' devices that are missing and makes them
// anew where the pod's namespace is still there. It runs on the loop; what it
// made is planned already and written by the next round.
func (a *Agent) mendMissing(err error) (rest error, mended bool) {
	troubles := map[string]string{}
	var others []error
	for _, e := range parts(err) {
		var missing *route.MissingLinkError
		if !errors.As(e, &missing) || !missing.Veth {
			others = append(others, e)
			continue
		}
		allocation, ok := a.allocationOf(missing.Link)
		if !ok || a.detaching.has(allocation.ID) {
			continue // it is going
		}
		name := allocation.Namespace + "/" + allocation.Pod
		if err := a.reattach(allocation); err != nil {
			troubles[name] = fmt.Sprintf("%s is gone and can't be made anew: %v", missing.Link, err)
			continue
		}
		a.log.Warn("a pod's interface was removed; made it anew", "namespace", allocation.Namespace, "pod", allocation.Pod, "interface", missing.Link)
		mended = true
	}
	a.troubled.missing = troubles
	return errors.Join(others...), mended
}

// parts are the errors that errors.Join joined.
func parts(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func (a *Agent) allocationOf(hostInterface string) (ipam.Allocation, bool) {
	for _, al := range a.ipam.List() {
		if al.HostInterface == hostInterface {
			return al, true
		}
	}
	return ipam.Allocation{}, false
}

// reattach makes a pod's pair of devices again, as it was.
func (a *Agent) reattach(al ipam.Allocation) error {
	j := journalOf(al)
	id, err := namespaceID(al.NetNS)
	if err != nil {
		return fmt.Errorf("its network namespace is gone: %w", err)
	}
	if id != j.NetNSID {
		return fmt.Errorf("%s is another network namespace by now", al.NetNS)
	}
	link := pod.Attachment{
		NetNS: al.NetNS, PodInterface: al.IfName, HostInterface: al.HostInterface, ContainerID: al.ContainerID,
		PodMAC: j.MAC, MTU: j.MTU,
	}
	for _, addr := range al.Addresses {
		link.Addresses = append(link.Addresses, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return pod.Attach(link)
}

// namespaceID tells namespaces apart: a path below /proc may come to mean
// another one when a process id is used again.
func namespaceID(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return "", fmt.Errorf("%s: it is not a namespace", path)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}
