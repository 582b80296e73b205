package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// podNS is a pod's network namespace, and a netlink connection into it.
type podNS struct {
	path   string
	file   *os.File
	handle *netlink.Handle
}

func openNS(path string) (*podNS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	ns := &podNS{path: path, file: f}
	if err := ns.do(func() (err error) {
		ns.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}); err != nil {
		f.Close()
		return nil, fmt.Errorf("enter the pod's network namespace %s: %w", path, err)
	}
	return ns, nil
}

// isOwn says whether it is the namespace of the calling thread.
func (ns *podNS) isOwn() (bool, error) {
	theirs, err := ns.file.Stat()
	if err != nil {
		return false, err
	}
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return false, err
	}
	return os.SameFile(own, theirs), nil
}

func (ns *podNS) close() {
	ns.handle.Close()
	ns.file.Close()
}

// do runs f on a thread that is in the namespace.
func (ns *podNS) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		if err = unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err == nil {
			err = f()
		} else if err == unix.EINVAL {
			err = errors.New("it is not a network namespace")
		}
		// A thread that can't go home is not given back: while locked, it ends
		// with its goroutine.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// setIPv6 prepares IPv6 on an interface before it is up: addresses and routes
// are ours to give, not a router's, and an interface without one of ours has
// no IPv6 at all, for no policy would speak of its link-local address.
func (ns *podNS) setIPv6(ifName string, enabled bool) error {
	dir := filepath.Join("/proc/sys/net/ipv6/conf", ifName)
	disable := "1"
	if enabled {
		disable = "0"
	}
	return ns.do(func() error {
		for _, s := range [][2]string{{"disable_ipv6", disable}, {"accept_ra", "0"}} {
			err := os.WriteFile(filepath.Join(dir, s[0]), []byte(s[1]), 0)
			if errors.Is(err, fs.ErrNotExist) && !enabled {
				return nil // a kernel without IPv6
			}
			if err != nil {
				return fmt.Errorf("set up IPv6 in the pod: %w", err)
			}
		}
		return nil
	})
}
