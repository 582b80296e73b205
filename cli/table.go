package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const none = "<none>"

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

// table is rows of text in aligned columns. What was printed once keeps its
// widths, so that rows that come later stand below it.
type table struct {
	columns  []string
	noHeader bool
	rows     [][]string
	widths   []int
	started  bool
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// print writes the rows that were added since the last time.
func (t *table) print(w io.Writer) {
	if !t.started && !t.noHeader {
		t.rows = append([][]string{t.columns}, t.rows...)
	}
	t.started = true
	if t.widths == nil {
		t.widths = make([]int, len(t.columns))
	}
	for _, row := range t.rows {
		for i, cell := range row {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(row)-1 {
				b.WriteString(cell)
				break
			}
			fmt.Fprintf(&b, "%-*s", t.widths[i]+3, cell)
		}
		b.WriteByte('\n')
	}
	t.rows = nil
	io.WriteString(w, b.String())
}
