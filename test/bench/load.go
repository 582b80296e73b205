package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// load is processor time since boot, in ticks of 10 ms.
type load struct {
	machine float64 // all of it but the idle time
	ours    float64 // of this process, of what it started, and of the kernel's threads
}

const ticksPerSecond = 100 // USER_HZ, which is the same on all Linux machines

// foreign is the processor time in seconds that others used since then.
func (l load) foreign(then load) float64 {
	return max(0, (l.machine-then.machine)-(l.ours-then.ours)) / ticksPerSecond
}

// readLoad reads /proc/stat and the times of all processes. What can't be read
// counts as nothing: this figure only says how quiet the machine was.
func readLoad() (l load) {
	text, _ := os.ReadFile("/proc/stat")
	first, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(first) {
		ticks, _ := strconv.ParseFloat(field, 64)
		// user, nice, system, -, -, irq, softirq; without steal and guest times
		if i >= 1 && i <= 7 && i != 4 && i != 5 {
			l.machine += ticks
		}
	}
	times, parents := map[int]float64{}, map[int]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		text, _ := os.ReadFile(file)
		// The name, in parentheses, may hold anything.
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(fields) < 15 {
			continue
		}
		parents[pid], _ = strconv.Atoi(fields[1])
		for _, field := range fields[11:15] { // utime, stime, cutime, cstime
			ticks, _ := strconv.ParseFloat(field, 64)
			times[pid] += ticks
		}
	}
	for pid, ticks := range times {
		if isOurs(pid, parents) {
			l.ours += ticks
		}
	}
	return l
}

// isOurs says whether a process descends from this one or is the kernel's.
func isOurs(pid int, parents map[int]int) bool {
	for range 100 {
		if slices.Contains([]int{os.Getpid(), 2}, pid) {
			return true
		}
		pid = parents[pid]
	}
	return false
}

// median is the middle of the values, which it sorts.
func median(values []float64) float64 { return percentile(values, 50) }

// percentile sorts the values; of none it is 0.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(len(values)-1, int(float64(len(values))*p/100))]
}
