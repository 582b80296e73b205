// Package process finds programs that run on this node, and how they were started.
package process

import (
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Process is a process of this node.
type Process struct {
	PID  string
	Args []string // the program first
}

// Running lists the processes of a program, by the base name of its executable.
// files is the node's root file system with /proc. Of processes in other network
// namespaces, such as those of containers, nothing is listed, where the caller's
// own is known.
func Running(files fs.FS, program string) []Process {
	entries, err := fs.ReadDir(files, "proc")
	if err != nil {
		return nil // without /proc nothing is known to run
	}
	own, unknown := fs.ReadLink(files, "proc/self/ns/net")
	var out []Process
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		dir := path.Join("proc", e.Name())
		line, err := fs.ReadFile(files, path.Join(dir, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if path.Base(args[0]) != program {
			continue
		}
		if network, err := fs.ReadLink(files, path.Join(dir, "ns/net")); unknown == nil && (err != nil || network != own) {
			continue
		}
		out = append(out, Process{e.Name(), args})
	}
	return out
}

// Flag is the value of a flag that has one of these names, "--config" for example,
// given as "--config=FILE" or "--config FILE"; the last one counts. Empty: it was
// not given.
func (p Process) Flag(names ...string) (value string) {
	for i, arg := range p.Args {
		name, v, joined := strings.Cut(arg, "=")
		switch {
		case i == 0 || !slices.Contains(names, name):
		case joined:
			value = v
		case i+1 < len(p.Args):
			value = p.Args[i+1]
		}
	}
	return value
}
