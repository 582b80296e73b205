package space

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Handle is a file or directory that was opened before mounts hid its name.
type Handle struct{ fd int }

// Open opens a path as it is seen now, on the calling thread.
func Open(path string) (Handle, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return Handle{}, fmt.Errorf("open %s: %w", path, err)
	}
	return Handle{fd}, nil
}

// Close releases the handle; what was bound stays.
func (h Handle) Close() { unix.Close(h.fd) }

// Bind makes what the handle stands for appear at target, a directory or a
// file, which is made if it is missing.
func (h Handle) Bind(target string, readOnly bool) error {
	if err := h.bind(target, unix.MS_BIND); err != nil {
		return err
	}
	if !readOnly {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

// BindAll is Bind for a directory with all that is mounted below it.
func (h Handle) BindAll(target string) error { return h.bind(target, unix.MS_BIND|unix.MS_REC) }

func (h Handle) bind(target string, flags uintptr) error {
	if err := h.mountPoint(target); err != nil {
		return err
	}
	// /proc/self is the process's first thread, which is in other namespaces.
	source := fmt.Sprintf("/proc/thread-self/fd/%d", h.fd)
	if err := unix.Mount(source, target, "", flags, ""); err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	return nil
}

// Share lets mounts propagate between the calling thread's mount namespace and
// those that are copied from it later, as kubelets want it.
func Share() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

func (h Handle) mountPoint(target string) error {
	var stat unix.Stat_t
	if err := unix.Fstat(h.fd, &stat); err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	return f.Close()
}

// Tmpfs mounts an empty file system at dir. The mark is shown as its source in
// the mount table of every process inside, however it got there (see Marked).
func Tmpfs(dir, mark string) error {
	if err := unix.Mount(mark, dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// Sysfs mounts a fresh /sys, which shows the devices of the calling thread's
// network namespace instead of the host's.
func Sysfs() error {
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	return nil
}

// Overlay makes dir writable without a trace: what is there stays visible, what
// is written goes to scratch, a directory of a tmpfs.
func Overlay(dir, scratch string) error {
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
	err := unix.Mount("overlay", dir, "overlay", 0, options)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mount overlay on %s: the kernel has no overlayfs, which the lab needs to keep what nodes write off the host", dir)
	}
	if err != nil {
		return fmt.Errorf("mount overlay on %s: %w", dir, err)
	}
	return nil
}

// Unmount takes away what is mounted at dir and below, on the calling thread; who
// uses it keeps it.
func Unmount(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// UnmountBelow is Unmount of all that is mounted below dir, but not at it.
func UnmountBelow(dir string) error {
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(table), "\n")
	slices.Reverse(lines) // what was mounted last goes first
	for _, line := range lines {
		// proc_pid_mountinfo(5): id, parent, device, root, mount point
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		if err := Unmount(fields[4]); err != nil && !errors.Is(err, unix.EINVAL) { // it went with another
			return err
		}
	}
	return nil
}
