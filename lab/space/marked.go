package space

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Marked returns the processes whose mount table holds a file system that was
// mounted by Tmpfs with this mark, or with one that starts with it and a slash:
// what runs inside, whoever started it and however it was cut loose.
func Marked(mark string) ([]int, error) {
	tables, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range tables {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		if !hasMark(string(text), mark) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// hasMark reads proc_pid_mountinfo(5): after the separator "-" come type,
// source and options.
func hasMark(mountinfo, mark string) bool {
	for line := range strings.Lines(mountinfo) {
		_, tail, _ := strings.Cut(line, " - ")
		fields := strings.Fields(tail)
		if len(fields) > 1 && fields[0] == "tmpfs" && (fields[1] == mark || strings.HasPrefix(fields[1], mark+"/")) {
			return true
		}
	}
	return false
}

// KillMarked kills every marked process and waits until all are gone.
func KillMarked(mark string, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause *= 2 {
		pids, err := Marked(mark)
		if err != nil {
			return err
		}
		// Processes are looked for again after each round: one may have forked
		// between being seen and being killed.
		running := 0
		for _, pid := range pids {
			if pid == os.Getpid() || zombie(pid) {
				continue
			}
			running++
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		if running == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of %s outlived SIGKILL for %s", running, mark, patience)
		}
		time.Sleep(min(pause, 50*time.Millisecond))
	}
}

// zombie reports whether the process is dead but not yet waited for.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, tail, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(tail, "Z") || strings.HasPrefix(tail, "X")
}
