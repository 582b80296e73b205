package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const ownNS = "/proc/thread-self/ns/net"

// podNS is a pod's network namespace.
type podNS struct{ file *os.File }

func openNS(path string) (podNS, error) {
	f, err := os.Open(path)
	if err != nil {
		return podNS{}, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	return podNS{f}, nil
}

func (ns podNS) close() { ns.file.Close() }

// isOwn says whether it is the namespace of the calling thread.
func (ns podNS) isOwn() (bool, error) {
	theirs, err := ns.file.Stat()
	if err != nil {
		return false, err
	}
	own, err := os.Stat(ownNS)
	if err != nil {
		return false, err
	}
	return os.SameFile(own, theirs), nil
}

// handle is a netlink connection into the namespace.
func (ns podNS) handle() (h *netlink.Handle, err error) {
	err = ns.do(func() error {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

// do runs f on a thread that is in the namespace.
func (ns podNS) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(ownNS)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		switch err = unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err {
		case nil:
			err = f()
		case unix.EINVAL:
			err = fmt.Errorf("enter the pod's network namespace %s: it is not a network namespace", ns.file.Name())
		default:
			err = fmt.Errorf("enter the pod's network namespace %s: %w", ns.file.Name(), err)
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

// setIPv6 prepares IPv6 on an interface before it is up, on a thread in the
// namespace: addresses and routes are ours to give, not a router's, and an
// interface without one of ours has no IPv6 at all, for no policy would speak of
// its link-local address.
func setIPv6(ifName string, enabled bool) error {
	settings := [][2]string{{"disable_ipv6", "1"}}
	if enabled {
		settings = [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}}
	}
	for _, s := range settings {
		err := writeSetting(filepath.Join("/proc/sys/net/ipv6/conf", ifName, s[0]), s[1])
		if errors.Is(err, unix.ENOENT) && !enabled {
			return nil // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("set up IPv6 in the pod: set %s of %s to %s: %w", s[0], ifName, s[1], err)
		}
	}
	return nil
}

// writeSetting writes a file that has no use for Go's poller, which would be
// asked for every os.File.
func writeSetting(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}
