package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// narrator writes the story as aligned text.
type narrator struct {
	w                       io.Writer
	bold, green, red, plain string
}

func newNarrator(w io.Writer) *narrator {
	n := &narrator{w: w}
	if colours(w) {
		n.bold, n.green, n.red, n.plain = "\x1b[1m", "\x1b[32m", "\x1b[31m", "\x1b[0m"
	}
	return n
}

func (n *narrator) title(dualStack bool) {
	families := "IPv4"
	if dualStack {
		families = "IPv4 and IPv6"
	}
	fmt.Fprintf(n.w, "%sTwill on three nodes, which are network namespaces of this machine (%s)%s\n", n.bold, families, n.plain)
}

func (n *narrator) begin(number int, title, expect string) {
	fmt.Fprintf(n.w, "\n%s%2d  %s%s\n", n.bold, number, title, n.plain)
	n.field("expected", expect)
}

// field writes a name and lines that are aligned beside it.
func (n *narrator) field(name, text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintf(n.w, "    %-9s %s\n", name, line)
		name = ""
	}
}

func (n *narrator) result(seen string, took time.Duration, err error) {
	if seen != "" {
		n.field("seen", seen)
	}
	if err != nil {
		n.field(n.red+"differs"+n.plain+"  ", err.Error())
		return
	}
	n.field(n.green+"ok"+n.plain+"       ", fmt.Sprintf("%.2f s", took.Seconds()))
}

func (n *narrator) end(took time.Duration, err error) {
	if err != nil {
		fmt.Fprintf(n.w, "\n%sThe story ended early, after %.1f s.%s\n", n.red, took.Seconds(), n.plain)
		return
	}
	fmt.Fprintf(n.w, "\n%sAll as expected, in %.1f s. The lab is taken down, and nothing is left of it.%s\n", n.green, took.Seconds(), n.plain)
}
