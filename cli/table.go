package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const none = "<none>"

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

// printable is text of an object as it may go to a terminal: what steers one, or
// is no text at all, is shown as an escape. Others write objects too, and not
// everything that they write was checked.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
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

func (t *table) add(cells ...string) {
	for i, cell := range cells {
		cells[i] = printable(cell)
	}
	t.rows = append(t.rows, cells)
}

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
