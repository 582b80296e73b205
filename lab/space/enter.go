package space

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Enter moves the calling goroutine, which it locks to its thread for good,
// into the namespaces of a task (see Space.Task). What that goroutine then
// executes or starts is inside. The working directory stays if it exists
// inside.
func Enter(task string) error {
	runtime.LockOSThread()
	dir, _ := os.Getwd()
	// setns refuses a mount namespace to threads that share their root and
	// working directory with others.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	names := []string{"net", "uts", "ipc", "mnt"}
	files := make([]*os.File, len(names))
	for i, name := range names {
		f, err := os.Open(filepath.Join(task, "ns", name))
		if err != nil {
			return fmt.Errorf("enter namespaces: %w", err)
		}
		defer f.Close()
		files[i] = f
	}
	for i, f := range files {
		if err := unix.Setns(int(f.Fd()), 0); err != nil {
			return fmt.Errorf("enter %s namespace of %s: %w", names[i], task, err)
		}
	}
	if os.Chdir(dir) != nil {
		return os.Chdir("/")
	}
	return nil
}

// In runs f on a thread in the network namespace of a task, and waits for it.
// Sockets that f opens itself belong to that namespace for good; goroutines
// that it starts are outside.
func In(task string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		ns, err := os.Open(filepath.Join(task, "ns", "net"))
		if err != nil {
			result <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network namespace of %s: %w", task, err)
			return
		}
		result <- f()
	}()
	return <-result
}
