package main

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
)

// spec is one test as JUnit files tell it.
type spec struct {
	Name    string  `xml:"name,attr"`
	Status  string  `xml:"status,attr"`
	Seconds float64 `xml:"time,attr"`
	Failure struct {
		Message string `xml:"message,attr"`
	} `xml:"failure"`
	Error struct {
		Message string `xml:"message,attr"`
	} `xml:"error"`
}

// readJUnit returns the tests that were run.
func readJUnit(path string) (ran []spec, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var report struct {
		Suites []struct {
			Specs []spec `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &report); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, s := range report.Suites {
		for _, spec := range s.Specs {
			// What comes before and after all tests is listed too.
			name, isTest := strings.CutPrefix(spec.Name, "[It] ")
			if spec.Status == "skipped" || spec.Status == "pending" || !isTest && spec.Status == "passed" {
				continue
			}
			spec.Name = name
			ran = append(ran, spec)
		}
	}
	if len(ran) == 0 {
		return nil, fmt.Errorf("%s: no test was run", path)
	}
	return ran, nil
}

// tell prints a table, failures last, and returns how many there are.
func tell(out io.Writer, specs []spec) (failed int) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "RESULT\tSECONDS\tTEST")
	for _, failures := range []bool{false, true} {
		for _, s := range specs {
			if s.Status == "passed" == failures {
				continue
			}
			fmt.Fprintf(table, "%s\t%.0f\t%s\n", s.Status, s.Seconds, s.Name)
			if failures {
				failed++
				why, _, _ := strings.Cut(strings.TrimSpace(s.Failure.Message+s.Error.Message), "\n")
				fmt.Fprintf(table, "\t\t  %s\n", cmp.Or(why, "it did not say why"))
			}
		}
	}
	table.Flush()
	fmt.Fprintf(out, "%d of %d passed\n", len(specs)-failed, len(specs))
	return failed
}

// progress says which tests end, while the log has everything.
type progress struct {
	log  io.Writer
	say  func(string)
	rest []byte
	name string
	done int
}

func (p *progress) Write(text []byte) (int, error) {
	if _, err := p.log.Write(text); err != nil {
		return 0, err
	}
	p.rest = append(p.rest, text...)
	for {
		line, rest, whole := bytes.Cut(p.rest, []byte("\n"))
		if !whole {
			return len(text), nil
		}
		p.rest = rest
		p.line(string(line))
	}
}

// line takes one of Ginkgo's: a test's name begins its part, a bullet ends it.
func (p *progress) line(line string) {
	switch {
	case strings.HasPrefix(line, "[sig-"):
		p.name = line
	case strings.HasPrefix(line, "• "):
		p.done++
		p.say(fmt.Sprintf("%3d %s %s", p.done, strings.TrimPrefix(line, "• "), p.name))
	}
}
