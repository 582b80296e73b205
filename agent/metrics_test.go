package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/test/golden"
)

const metricsIntro = `# Metrics

The agent serves them for Prometheus at ` + "`/metrics`" + ` of ` + "`--metrics-address`" + ` (default ` + "`127.0.0.1:9841`" + `), beside the
usual ones of the Go runtime and of the process (` + "`go_*`, `process_*`" + `). ` + "`/healthz`" + ` at the same address answers 200 once
the node is in step with the store, 503 before; its body lists what is wrong.

| name | type | labels | what it is |
|---|---|---|---|
`

// TestMetricsReference holds the page against the registry.
func TestMetricsReference(t *testing.T) {
	const path = "../docs/reference/metrics.md"
	m := newMetrics(&Agent{health: &health.Tracker{}})
	m.observe("ADD", time.Now(), nil) // what has labels is listed once it has a value
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(metricsIntro)
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "twill_") {
			continue
		}
		values := map[string][]string{}
		var labels []string
		for _, metric := range f.GetMetric() {
			for _, l := range metric.GetLabel() {
				if values[l.GetName()] == nil {
					labels = append(labels, l.GetName())
				}
				if !slices.Contains(values[l.GetName()], l.GetValue()) {
					values[l.GetName()] = append(values[l.GetName()], l.GetValue())
				}
			}
		}
		for i, name := range labels {
			labels[i] = "`" + name + "`: " + strings.Join(values[name], ", ")
			switch name { // whose values are not all there from the start
			case "command":
				labels[i] = "`command`: ADD, DEL, CHECK, GC"
			case "result":
				labels[i] = "`result`: ok, error"
			case "code":
				labels[i] = "`code`: see [conditions](conditions.md)"
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, "; "), f.GetHelp())
	}
	golden.Check(t, path, b.String())
}

// TestMetricsHaveTheAgentsConditions: each condition that is exported is one that
// the agent's or the planner's source names, and the other way round.
func TestMetricsHaveTheAgentsConditions(t *testing.T) {
	families, err := newMetrics(&Agent{health: &health.Tracker{}}).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	exported := map[string]bool{}
	for _, f := range families {
		if f.GetName() == "twill_condition" {
			for _, metric := range f.GetMetric() {
				exported[metric.GetLabel()[0].GetValue()] = true
			}
		}
	}
	var source strings.Builder
	for _, pattern := range []string{"*.go", "../plan/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(text)
		}
	}
	for _, d := range health.Definitions() {
		named := regexp.MustCompile(`health\.` + string(d.Code) + `\b|"` + string(d.Code) + `"`).MatchString(source.String())
		if named != exported[string(d.Code)] {
			t.Errorf("%s: exported %t, named in the agent's source %t; its reporter is %s", d.Code, exported[string(d.Code)], named, d.Reporter())
		}
	}
}
