package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/twill-net/twill/lab/space"
)

// cgroups is where the kernel's control groups are, of which no namespace makes
// a lab's own: containers are where containerd puts those of Kubernetes on any
// machine.
const (
	cgroups          = "/sys/fs/cgroup"
	containersCgroup = "/k8s.io"
)

// seeCgroups mounts a fresh /sys, on a space's thread, that shows the machine's
// control groups.
func seeCgroups() error {
	groups, err := space.Open(cgroups)
	if err != nil {
		return err
	}
	defer groups.Close()
	if err := space.Sysfs(); err != nil {
		return err
	}
	return groups.BindAll(cgroups)
}

// killAll ends all processes of a lab, and removes the control groups that its
// containers leave.
func killAll(lab string, patience time.Duration) error {
	groups, err := containerCgroups(mark(lab))
	if err != nil {
		return err
	}
	if err := space.KillMarked(mark(lab), patience); err != nil {
		return err
	}
	// A process leaves its group last of all, when it is marked no more.
	deadline := time.Now().Add(patience)
	for {
		err := removeCgroups(groups)
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// containerCgroups are the groups of the containers whose processes have the
// mark, as paths from the root of the hierarchies.
func containerCgroups(mark string) ([]string, error) {
	pids, err := space.Marked(mark)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var groups []string
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			continue // it ended meanwhile
		}
		for line := range strings.Lines(string(text)) {
			// cgroups(7): hierarchy, controllers, path
			fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(fields) == 3 && strings.HasPrefix(fields[2], containersCgroup+"/") && !seen[fields[2]] {
				seen[fields[2]] = true
				groups = append(groups, fields[2])
			}
		}
	}
	return groups, nil
}

// removeCgroups removes groups from every hierarchy, and what they were in if
// nobody else's are there. The files in a group are the kernel's and go with it.
func removeCgroups(groups []string) error {
	roots, err := filepath.Glob(filepath.Join(cgroups, "*"))
	errs := []error{err}
	for _, root := range append(roots, cgroups) {
		for _, group := range groups {
			if err := os.Remove(filepath.Join(root, group)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove a control group: %w", err))
			}
		}
		_ = os.Remove(filepath.Join(root, containersCgroup))
	}
	return errors.Join(errs...)
}
