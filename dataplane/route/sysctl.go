package route

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/twill-net/twill/plan"
)

const sysctlRoot = "/proc/sys"

// sysctlLink returns the device whose setting a path is, if it is a device's:
// such a setting dies with its device.
func sysctlLink(path string) string {
	// net/ipv4/conf/<link>/<name>, net/ipv6/neigh/<link>/<name>
	parts := strings.Split(path, "/")
	if len(parts) != 5 || parts[0] != "net" || parts[2] != "conf" && parts[2] != "neigh" {
		return ""
	}
	if parts[3] == "all" || parts[3] == "default" {
		return ""
	}
	return parts[3]
}

// sysctlPath is where a setting is of which a notification told; "" if it is that
// of a device that is not known.
func (k *Kernel) sysctlPath(at settingAt) string {
	link := k.names[at.index]
	switch {
	case at.index == allLinks && at.family == "ipv4" && at.name == "forwarding":
		return "net/ipv4/ip_forward"
	case at.index == allLinks:
		link = "all"
	case link == "":
		return ""
	}
	return path.Join("net", at.family, "conf", link, at.name)
}

// CheckSysctls reads all sysctls that p wants, because the kernel notifies the
// changes of few, marks dirty those that differ, and returns how many these are.
// It takes about 10 µs each.
func (k *Kernel) CheckSysctls(p *plan.Plan) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	differ := 0
	for path, want := range p.Sysctls.All() {
		if have, err := readSysctl(path); err != nil || !sysctlHolds(path, have, want) {
			k.sysctls.unset(path)
			k.sysctls.doubt(path, p.Sysctls, err == nil) // else its device is gone
			differ++
		}
	}
	return differ
}

func (a *pass) putSysctl(path, want string) (bool, error) {
	link := sysctlLink(path)
	if link != "" {
		if _, err := a.index(link); err != nil {
			return false, err
		}
	}
	have, err := readSysctl(path)
	if err == nil && sysctlHolds(path, have, want) {
		return false, nil
	}
	if err == nil {
		if err := a.originals.keep(path, have); err != nil {
			return false, err
		}
		err = os.WriteFile(filepath.Join(sysctlRoot, path), []byte(want), 0)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("set sysctl %s=%s: the kernel has no such setting; it needs %s", path, want, sysctlFeature(path))
	}
	if err != nil {
		return false, fmt.Errorf("set sysctl %s=%s: %w", path, want, errors.Unwrap(err))
	}
	return true, nil
}

func readSysctl(path string) (string, error) {
	if !filepath.IsLocal(path) {
		return "", &fs.PathError{Op: "read", Path: path, Err: errors.New("not a path below " + sysctlRoot)}
	}
	b, err := os.ReadFile(filepath.Join(sysctlRoot, path))
	return string(b), err
}

// sysctlHolds says whether a setting is as it is wanted: for how many connections
// are tracked, also if more are, or if the namespace has no say in it: in any but
// the initial one the kernel lets nobody write the file, and the host's value holds.
func sysctlHolds(path, have, want string) bool {
	if path != plan.ConntrackMax {
		return sameSysctl(have, want)
	}
	tracked, err := strconv.Atoi(strings.TrimSpace(have))
	least, wrong := strconv.Atoi(want)
	if err == nil && wrong == nil && tracked >= least {
		return true
	}
	file, err := os.Stat(filepath.Join(sysctlRoot, path))
	return err == nil && file.Mode().Perm()&0o222 == 0
}

// sameSysctl compares values as the kernel does: it prints lists with tabs.
func sameSysctl(a, b string) bool { return slices.Equal(strings.Fields(a), strings.Fields(b)) }

// sysctlFeature names what of the kernel provides a setting.
func sysctlFeature(path string) string {
	switch {
	case strings.HasPrefix(path, "net/ipv6/"):
		return "IPv6 (not disabled by ipv6.disable=1)"
	case strings.HasPrefix(path, "net/bridge/"):
		return "br_netfilter"
	case strings.HasPrefix(path, "net/netfilter/"):
		return "nf_conntrack"
	}
	return "a newer kernel, or one built with the feature that " + filepath.Base(path) + " controls"
}
