package route

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// originals is a file with the values that sysctls had before we set them, a
// line "path value" each, so that Cleanup can put them back. It belongs on a
// tmpfs: a boot resets both.
type originals struct {
	file  string // empty: nothing is kept
	known map[string]struct{}
}

// KeepOriginals has the values that sysctls had before Apply sets them kept in
// a file, for RestoreSysctls. What the file has already stays: it is older.
func (k *Kernel) KeepOriginals(file string) error {
	values, err := readOriginals(file)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.originals = originals{file, map[string]struct{}{}}
	for _, v := range values {
		k.originals.known[v.path] = struct{}{}
	}
	return nil
}

// keep notes a value before it is changed; not that of a device of ours, which
// it goes with.
func (o *originals) keep(path, value string) error {
	if _, ok := o.known[path]; ok || o.file == "" || ours(sysctlLink(path)) {
		return nil
	}
	lines := line(path, value)
	for _, other := range changedWith(path) {
		if have, err := readSysctl(other); err == nil && !ours(sysctlLink(other)) {
			lines += line(other, have)
		}
	}
	f, err := os.OpenFile(o.file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("note what sysctl %s was: %w", path, err)
	}
	_, err = f.WriteString(lines)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("note what sysctl %s was: %w", path, err)
	}
	o.known[path] = struct{}{}
	return nil
}

func line(path, value string) string {
	return fmt.Sprintf("%s %s\n", path, strings.Join(strings.Fields(value), " "))
}

// changedWith are the settings that the kernel changes when it is told to forward,
// or not to (inet_forward_change, addrconf_fixup_forwarding): to put back the one
// alone would not put back these.
func changedWith(path string) (others []string) {
	var patterns []string
	switch path {
	case "net/ipv4/ip_forward":
		patterns = []string{"net/ipv4/conf/all/accept_redirects", "net/ipv4/conf/*/forwarding"}
	case "net/ipv6/conf/all/forwarding":
		patterns = []string{"net/ipv6/conf/*/forwarding"}
	}
	for _, pattern := range patterns {
		paths, err := filepath.Glob(filepath.Join(sysctlRoot, pattern))
		if err != nil {
			continue // the patterns are right
		}
		for _, p := range paths {
			if other, err := filepath.Rel(sysctlRoot, p); err == nil && other != path {
				others = append(others, other)
			}
		}
	}
	return others
}

type original struct{ path, value string }

func readOriginals(file string) ([]original, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return parseOriginals(string(text)), err
}

// parseOriginals leaves out lines that are none of ours: the file may be cut
// short, or somebody else's.
func parseOriginals(text string) (out []original) {
	for line := range strings.Lines(text) {
		path, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && filepath.IsLocal(path) {
			out = append(out, original{path, value})
		}
	}
	return out
}

// RestoreSysctls puts back what KeepOriginals noted in the file, removes the
// file, and says what it put back. A setting whose device is gone is passed
// over.
func RestoreSysctls(file string) (restored []string, err error) {
	values, err := readOriginals(file)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, v := range values {
		have, err := readSysctl(v.path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && sameSysctl(have, v.value) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(sysctlRoot, v.path), []byte(v.value), 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("put sysctl %s back: %w", v.path, err))
			continue
		}
		restored = append(restored, "sysctl "+v.path+" (it is "+v.value+" again)")
	}
	if len(errs) > 0 {
		return restored, errors.Join(errs...)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return restored, err
	}
	return restored, nil
}
