package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	for _, c := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{nil, 50, 0},
		{[]float64{7}, 99, 7},
		{[]float64{3, 1, 2}, 50, 2},
		{hundred, 50, 51},
		{hundred, 99, 100},
		{hundred, 100, 100},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile %v of %d values = %v, want %v", c.p, len(c.values), got, c.want)
		}
	}
}

func TestTimesKeepTheMedian(t *testing.T) {
	var all times
	for _, d := range []time.Duration{5 * time.Microsecond, 7250 * time.Nanosecond, time.Hour} {
		all.add(d)
	}
	if got := all.median(); got != 7.25 {
		t.Errorf("median = %v µs, want 7.25", got)
	}
}

// TestRatiosArePairedByRound holds that a round in which the machine was slow
// for both does not change the ratio.
func TestRatiosArePairedByRound(t *testing.T) {
	if got := pairedRatio([]float64{9, 90, 18}, []float64{10, 100, 20}); got != 0.9 {
		t.Errorf("ratio = %v, want 0.9", got)
	}
}

func TestReport(t *testing.T) {
	r := newReport()
	r.begin("cni")
	r.add("ADD, p50", 5, "ms", atMost(4))
	r.compare("DEL, p50", 2, "ms", "bridge plugin", 20, 0.1, ratioAtMost(0.5))
	r.note("the peer is %s", "slow")
	r.end()
	var table, text bytes.Buffer
	if err := r.writeTable(&table); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(table.String(), "\n")
	for i, want := range [][]string{
		{"WHAT", "FIGURE", "PEER OR BASELINE", "RATIO", "GOAL", "MET"},
		{"cni: ADD, p50", "5 ms", "≤ 4", "NO"},
		{"cni: DEL, p50", "2 ms", "bridge plugin: 20", "0.10", "ratio ≤ 0.5", "yes"},
	} {
		for _, word := range want {
			if !strings.Contains(lines[i], word) {
				t.Errorf("line %d has no %q: %s", i, word, lines[i])
			}
		}
	}
	if !strings.Contains(table.String(), "note: cni: the peer is slow") {
		t.Errorf("the note is missing:\n%s", table.String())
	}
	if err := r.writeJSON(&text); err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(text.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Rows) != 2 || *back.Rows[0].Met || !*back.Rows[1].Met || back.Rows[0].Ratio != nil {
		t.Errorf("as JSON: %s", text.String())
	}
}

func TestOursIsWhatDescendsFromUs(t *testing.T) {
	self := os.Getpid()
	parents := map[int]int{self: 1, self + 1: self, self + 2: self + 1, self + 3: 1, 2: 0, 9: 2}
	for pid, want := range map[int]bool{self: true, self + 2: true, self + 3: false, 1: false, 9: true} {
		if got := isOurs(pid, parents); got != want {
			t.Errorf("process %d is ours: %v, want %v", pid, got, want)
		}
	}
}

func TestOnlyKnownBenchmarks(t *testing.T) {
	if _, err := choose("cni,speed"); err == nil || !strings.Contains(err.Error(), `no benchmark "speed"`) {
		t.Errorf("error = %v", err)
	}
	if got, err := choose(""); err != nil || len(got) != len(benchmarks) {
		t.Errorf("all = %v, %v", got, err)
	}
}
