package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write docs/reference/lab.md")

// TestReference holds the page of the lab's commands against the commands.
func TestReference(t *testing.T) {
	const path = "../../docs/reference/lab.md"
	t.Setenv("TWILL_LAB", "") // the default of --name would show it
	var b strings.Builder
	b.WriteString("# The lab's commands\n\nWhat `twill lab COMMAND --help` says. Flags that are listed under `twill lab` are flags of each of its commands.\n")
	writeCommand(&b, newRoot())
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), string(got)); diff != "" {
		t.Errorf("%s is not current; run `go test ./cmd/twill-lab -update`:\n%s", path, diff)
	}
}

func writeCommand(b *strings.Builder, c *cobra.Command) {
	if !c.IsAvailableCommand() && c.HasParent() {
		return
	}
	fmt.Fprintf(b, "\n## %s\n\n%s.\n\n```text\n", c.CommandPath(), c.Short)
	if c.Long != "" {
		fmt.Fprintf(b, "%s\n\n", c.Long)
	}
	fmt.Fprintf(b, "Usage:\n  %s\n", c.UseLine())
	if c.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n%s\n", c.Example)
	}
	if c.HasAvailableLocalFlags() {
		fmt.Fprintf(b, "\nFlags:\n%s", c.LocalFlags().FlagUsagesWrapped(116))
	}
	b.WriteString("```\n")
	for _, sub := range c.Commands() {
		writeCommand(b, sub)
	}
}
