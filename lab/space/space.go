// Package space makes and enters sets of kernel namespaces: the nodes and pods
// of a lab. A Space is one operating-system thread that lives in network,
// mount, UTS and IPC namespaces of its own; what is started from it is inside,
// and when the thread ends, or its process dies however that may be, what was
// started is killed and the namespaces vanish with all links and mounts in
// them. Nothing is ever written to the host's mount namespace or network.
//
// It knows nothing about clusters.
package space

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// A thread that ends in foreign namespaces must really end, and Go never ends
// a process's first thread. Package initialisation runs on that thread, so this
// keeps it for the main goroutine and away from every Space.
func init() { runtime.LockOSThread() }

// Space is a set of namespaces. Its methods may be called concurrently.
type Space struct {
	task string
	work chan func()
	end  chan struct{}
	gone chan struct{}
}

// New makes a Space with the given hostname. Its mounts are a private copy of
// the caller's, its network has only a loopback device, which is down.
func New(hostname string) (*Space, error) {
	s := &Space{work: make(chan func()), end: make(chan struct{}), gone: make(chan struct{})}
	started := make(chan error)
	go s.live(hostname, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("make namespaces for %s: %w", hostname, err)
	}
	return s, nil
}

// live never unlocks its thread, so that the thread ends with it.
func (s *Space) live(hostname string, started chan<- error) {
	runtime.LockOSThread()
	defer close(s.gone)
	s.task = fmt.Sprintf("/proc/%d/task/%d", os.Getpid(), unix.Gettid())
	if err := isolate(hostname); err != nil {
		started <- err
		return
	}
	started <- nil
	for {
		select {
		case f := <-s.work:
			f()
		case <-s.end:
			return
		}
	}
}

func isolate(hostname string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// Without this, mounts would propagate to the host wherever its mounts are
	// shared, as systemd makes them.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	return nil
}

// Do runs f on the Space's thread, so inside its namespaces, and returns what
// it returns. Goroutines that f starts are outside.
func (s *Space) Do(f func() error) error {
	result := make(chan error, 1)
	select {
	case s.work <- func() { result <- f() }:
		return <-result
	case <-s.end:
		return fmt.Errorf("the namespaces of %s are closed", s.task)
	}
}

// Start starts a command inside. The command's path is looked up inside, and it
// is killed when the Space ends.
func (s *Space) Start(cmd *exec.Cmd) error {
	return s.Do(func() error {
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		if path, err := exec.LookPath(cmd.Args[0]); err == nil {
			cmd.Path, cmd.Err = path, nil
		}
		return cmd.Start()
	})
}

// Renew gives the Space a new network, as New does; the old one lives on as long as
// other processes are in it.
func (s *Space) Renew() error {
	return s.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWIPC); err != nil {
			return fmt.Errorf("make namespaces anew: %w", err)
		}
		return nil
	})
}

// Task is the directory in /proc that stands for the Space, to be given to
// Enter; its ns/net is the network namespace. It is valid until Close.
func (s *Space) Task() string { return s.task }

// Close ends the Space and kills what was started by Start. Namespaces live on
// as long as other processes are in them.
func (s *Space) Close() {
	close(s.end)
	<-s.gone
}
