package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report is what a run found.
type report struct {
	Time       time.Time  `json:"time"`
	Kernel     string     `json:"kernel"`
	CPUs       int        `json:"cpus"`
	Go         string     `json:"go"`
	Quick      bool       `json:"quick,omitempty"`
	Benchmarks []duration `json:"benchmarks"`
	Rows       []row      `json:"rows"`
	Notes      []string   `json:"notes,omitempty"`

	began   time.Time
	current string
	load    load
}

// duration says how long a benchmark took, and what else ran meanwhile.
type duration struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	// ForeignLoad is the CPU time that processes which are not of this run took,
	// in processors.
	ForeignLoad float64 `json:"foreignLoad"`
}

// row is one line of the table.
type row struct {
	Benchmark string   `json:"benchmark"`
	What      string   `json:"what"`
	Figure    float64  `json:"figure"`
	Unit      string   `json:"unit"`
	Peer      string   `json:"peer,omitempty"` // who is compared with
	Baseline  *float64 `json:"baseline,omitempty"`
	Ratio     *float64 `json:"ratio,omitempty"` // figure to baseline
	Goal      string   `json:"goal,omitempty"`
	Met       *bool    `json:"met,omitempty"`
}

// goal says what a figure, or its ratio to the baseline, should be.
type goal struct {
	text string
	met  func(figure, ratio float64) bool
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }

func atMost(limit float64) *goal {
	return &goal{"≤ " + number(limit), func(figure, _ float64) bool { return figure <= limit }}
}

func ratioAtMost(limit float64) *goal {
	return &goal{"ratio ≤ " + number(limit), func(_, ratio float64) bool { return ratio <= limit }}
}

func ratioAtLeast(limit float64) *goal {
	return &goal{"ratio ≥ " + number(limit), func(_, ratio float64) bool { return ratio >= limit }}
}

func newReport() *report {
	r := &report{Time: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Go: runtime.Version()}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		r.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	return r
}

func (r *report) begin(name string) {
	r.current, r.began, r.load = name, time.Now(), readLoad()
}

func (r *report) end() {
	took := time.Since(r.began).Seconds()
	r.Benchmarks = append(r.Benchmarks, duration{r.current, took, readLoad().foreign(r.load) / took})
}

// add adds a figure that stands alone; without a goal g is nil.
func (r *report) add(what string, figure float64, unit string, g *goal) {
	line := row{Benchmark: r.current, What: what, Figure: figure, Unit: unit}
	if g != nil {
		met := g.met(figure, 0)
		line.Goal, line.Met = g.text, &met
	}
	r.Rows = append(r.Rows, line)
}

// compare adds a figure with that of a peer in the same run, and the ratio of
// the two.
func (r *report) compare(what string, figure float64, unit, peer string, baseline, ratio float64, g *goal) {
	line := row{Benchmark: r.current, What: what, Figure: figure, Unit: unit, Peer: peer, Baseline: &baseline, Ratio: &ratio}
	if g != nil {
		met := g.met(figure, ratio)
		line.Goal, line.Met = g.text, &met
	}
	r.Rows = append(r.Rows, line)
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, r.current+": "+fmt.Sprintf(format, args...))
}

func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

func (r *report) save(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := r.writeJSON(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func (r *report) writeTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tFIGURE\tPEER OR BASELINE\tRATIO\tGOAL\tMET")
	for _, line := range r.Rows {
		peer, ratio, met := "", "", ""
		if line.Baseline != nil {
			peer = fmt.Sprintf("%s: %s", line.Peer, number(*line.Baseline))
			ratio = strconv.FormatFloat(*line.Ratio, 'f', 2, 64)
		}
		if line.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*line.Met]
		}
		fmt.Fprintf(t, "%s: %s\t%s %s\t%s\t%s\t%s\t%s\n", line.Benchmark, line.What, number(line.Figure), line.Unit, peer, ratio, line.Goal, met)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s, %d processors, %s, %s\n", r.Kernel, r.CPUs, r.Go, r.Time.Format(time.RFC3339))
	for _, d := range r.Benchmarks {
		fmt.Fprintf(&b, "%s took %.0f s beside a foreign load of %.2f processors\n", d.Name, d.Seconds, d.ForeignLoad)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	if r.Quick {
		fmt.Fprintln(&b, "note: -quick was given: these figures are not to be trusted")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
