// Command report reads `go test -json` on standard input and prints what a
// person wants to see: a line for each package, the whole output of tests that
// failed, and each test that was skipped with its reason. With -skips FILE a
// skip whose test is not listed there is a failure, so that no test quietly
// stops to run. It never runs tests itself.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Output     string
	Elapsed    float64
}

type report struct {
	output         map[string][]string // by package and test
	passed, failed int
	skipped        map[string]string // test → reason
	failedPackages []string
}

func main() {
	allowed := flag.String("skips", "", "file with the tests that may be skipped, one a line")
	flag.Parse()
	r := report{output: map[string][]string{}, skipped: map[string]string{}}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Println(lines.Text()) // what the go command says by itself
			continue
		}
		r.take(e)
	}
	surprises := r.surprises(*allowed)
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, len(r.skipped))
	if r.failed > 0 || len(r.failedPackages) > 0 || surprises || r.passed == 0 {
		os.Exit(1)
	}
}

func (r *report) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "build-output":
		fmt.Print(e.Output)
	case "pass":
		delete(r.output, key)
		if e.Test != "" {
			r.passed++
		} else {
			fmt.Printf("ok    %7.1fs  %s\n", e.Elapsed, e.Package)
		}
	case "skip":
		if e.Test != "" {
			r.skipped[e.Package+" "+e.Test] = reason(r.output[key])
		}
		delete(r.output, key)
	case "fail":
		fmt.Print(strings.Join(r.output[key], ""))
		delete(r.output, key)
		if e.Test != "" {
			r.failed++
		} else {
			r.failedPackages = append(r.failedPackages, e.Package)
			fmt.Printf("FAIL  %7.1fs  %s\n", e.Elapsed, e.Package)
		}
	}
}

// reason is what a test said when it skipped itself.
func reason(output []string) string {
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}

// surprises prints the skipped tests and says whether one is not allowed.
func (r *report) surprises(file string) bool {
	allowed := map[string]bool{}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if line != "" && !strings.HasPrefix(line, "#") {
				allowed[line] = true
			}
		}
	}
	found := false
	for _, test := range slices.Sorted(maps.Keys(r.skipped)) {
		verdict := "skip "
		if file != "" && !allowed[test] {
			verdict, found = "SKIP, which is not allowed:", true
		}
		fmt.Println(verdict, test, "—", r.skipped[test])
	}
	return found
}
