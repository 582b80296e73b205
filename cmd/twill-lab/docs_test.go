package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/test/golden"
)

// TestReference holds the page of the lab's commands against the commands.
func TestReference(t *testing.T) {
	const path = "../../docs/reference/lab.md"
	t.Setenv("TWILL_LAB", "") // the default of --name would show it
	var b strings.Builder
	b.WriteString("# The lab's commands\n\nWhat `twill lab COMMAND --help` says. Flags that are listed under `twill lab` are flags of each of its commands.\n")
	writeCommand(&b, newRoot())
	golden.Check(t, path, b.String())
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
