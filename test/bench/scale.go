package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// figures are what one round of a measure found, by name.
type figures map[string]float64

// wanted is a figure that goes into the table.
type wanted struct {
	key, what, unit string
	goal            *goal
}

// measure is something that one planner and one kernel do at scale. Each round
// is a process of its own, so that memory and time are those of a fresh start.
type measure struct {
	name   string
	rounds int
	take   func(quick bool) (figures, error)
	wanted []wanted
}

func measures() []measure {
	return []measure{
		{"policy", 5, measurePolicy, []wanted{
			{"sync", "policy: first sync, from what the store holds to the kernel", "s", atMost(1)},
			{"decode", "policy: of which decoding objects", "s", nil},
			{"plan", "policy: of which planning", "s", nil},
			{"kernel", "policy: of which writing", "s", nil},
			{"member", "policy: one member changed, p50", "ms", atMost(0.5)},
			{"member99", "policy: one member changed, p99", "ms", nil},
			{"change", "policy: one policy changed, p50", "ms", atMost(1)},
			{"change99", "policy: one policy changed, p99", "ms", nil},
			{"rss", "policy: resident memory after the first sync", "MiB", atMost(100)},
			{"peak", "policy: peak of resident memory", "MiB", nil},
			{"heap", "policy: live heap", "MiB", nil},
			{"restart", "policy: restart with nothing changed", "s", nil},
			{"writes", "policy: restart with nothing changed, writes", "", atMost(0)},
			{"elements", "policy: elements in the kernel", "", nil},
		}},
		{"churn", 1, measureChurn, []wanted{
			{"cpu", "churn: 1,000 endpoint changes a second, processors", "", nil},
			{"lag", "churn: from event to kernel, p50", "ms", nil},
			{"lag99", "churn: from event to kernel, p99", "ms", nil},
			{"lagmax", "churn: from event to kernel, longest", "ms", nil},
			{"rss", "churn: resident memory at the end", "MiB", nil},
		}},
		{"services-wide", 5, measureWide, serviceFigures("10,000 services × 2")},
		{"services-deep", 5, measureDeep, serviceFigures("1,000 services × 250")},
		{"peers-vxlan", 5, measureVXLAN, peerFigures("vxlan")},
		{"peers-host-gw", 5, measureHostGateway, peerFigures("host-gw")},
	}
}

func serviceFigures(what string) []wanted {
	return []wanted{
		{"cold", what + ": cold, from what the store holds to the kernel", "s", atMost(0.5)},
		{"decode", what + ": of which decoding objects", "s", nil},
		{"plan", what + ": of which planning", "s", nil},
		{"kernel", what + ": of which writing", "s", nil},
		{"endpoint", what + ": one endpoint changed, p50", "ms", atMost(3)},
		{"endpoint99", what + ": one endpoint changed, p99", "ms", nil},
		{"rss", what + ": resident memory", "MiB", nil},
		{"elements", what + ": elements in the kernel", "", nil},
	}
}

func peerFigures(what string) []wanted {
	return []wanted{
		{"cold", "1,000 peers by " + what + ": cold, from what the store holds to the kernel", "s", nil},
		{"kernel", "1,000 peers by " + what + ": of which writing", "s", nil},
		{"change", "1,000 peers by " + what + ": one block changed, p50", "ms", nil},
		{"heap", "1,000 peers by " + what + ": live heap", "MiB", nil},
		{"rss", "1,000 peers by " + what + ": resident memory", "MiB", nil},
		{"routes", "1,000 peers by " + what + ": routes in the kernel", "", nil},
	}
}

// scale takes the rounds of all measures in turns.
func (b *bench) scale() error {
	all := measures()
	found := map[string]map[string][]float64{}
	for round := 0; ; round++ {
		took := false
		for _, m := range all {
			if round >= min(m.rounds, pick(b, m.rounds, 1)) {
				continue
			}
			took = true
			b.say("scale: %s, round %d of %d", m.name, round+1, m.rounds)
			one, err := b.measureInChild(m.name)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if found[m.name] == nil {
				found[m.name] = map[string][]float64{}
			}
			for key, value := range one {
				found[m.name][key] = append(found[m.name][key], value)
			}
		}
		if !took {
			break
		}
	}
	for _, m := range all {
		for _, w := range m.wanted {
			b.report.add(w.what, median(found[m.name][w.key]), w.unit, w.goal)
		}
	}
	return nil
}

func (b *bench) measureInChild(name string) (figures, error) {
	cmd := exec.CommandContext(b.ctx, b.self, childWord, "measure", name, pick(b, "full", "quick"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var f figures
	return f, json.Unmarshal(out, &f)
}

// measureOnce takes one round, on a thread in a namespace of its own.
func measureOnce(name string, quick bool) error {
	for _, m := range measures() {
		if m.name != name {
			continue
		}
		f, err := m.take(quick)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(f)
	}
	return fmt.Errorf("there is no measure %q", name)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// memory is a size of this process, in MiB.
func memory(name string) float64 {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kib, _ := strconv.ParseFloat(strings.Fields(value)[0], 64)
			return kib / 1024
		}
	}
	return 0
}

// liveHeap is what the planner and the mirror of the kernel hold, in MiB.
func liveHeap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// newScaleNode is a node in a namespace of its own, which ends with the process.
func newScaleNode() (*node, error) {
	ns, err := newNamespace("node0")
	if err != nil {
		return nil, err
	}
	return newNode(ns)
}
