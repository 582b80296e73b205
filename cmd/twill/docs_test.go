package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/twill-net/twill/agent"
	"github.com/twill-net/twill/cli"
	"github.com/twill-net/twill/test/golden"
)

// TestReference holds the pages of commands and settings against the commands.
func TestReference(t *testing.T) {
	// The default of --lab would show it.
	t.Setenv("TWILL_LAB", "")
	root := cli.New("", agent.Command)
	current(t, "../../docs/reference/commands.md", commandsPage(root))
	current(t, "../../docs/reference/settings.md", settingsPage(root))
}

func current(t *testing.T, path, want string) {
	t.Helper()
	golden.Check(t, path, want)
}

func commandsPage(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# Commands\n\nWhat `twill COMMAND --help` says. The lab's own commands are in [lab.md](lab.md), the settings with their\n" +
		"environment variables in [settings.md](settings.md). Flags that are listed under `twill` are flags of every command.\n")
	writeCommand(&b, root)
	return b.String()
}

func writeCommand(b *strings.Builder, c *cobra.Command) {
	if !c.IsAvailableCommand() && c.HasParent() || c.Name() == "completion" {
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

const settingsIntro = `# Settings

There is no configuration file: each setting is a flag or a variable of the environment. A flag wins over the
environment, that over what was detected (a lab that runs on this machine), and that over the default.
` + "`twill config explain`" + ` shows the values in force and where each comes from.
`

func settingsPage(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(settingsIntro)
	b.WriteString("\n## The way to the store\n\nFor every command, the agent and the controller too. Without any of them, the store is that of the lab that runs on\n" +
		"this machine, else etcd at `http://127.0.0.1:2379`.\n\n")
	writeSettings(&b, root.PersistentFlags())
	b.WriteString("\n## The agent\n\n")
	for _, c := range root.Commands() {
		if c.Name() == "agent" {
			writeSettings(&b, c.LocalNonPersistentFlags())
		}
	}
	return b.String()
}

// writeSettings writes those of the flags whose help names a variable at its end.
func writeSettings(b *strings.Builder, flags *pflag.FlagSet) {
	b.WriteString("| flag | environment | default | what it is |\n|---|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		what, env, ok := strings.Cut(strings.TrimSuffix(f.Usage, ")"), " (TWILL_")
		if !ok {
			return
		}
		value := "none"
		if f.DefValue != "" {
			value = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(b, "| `--%s` | `TWILL_%s` | %s | %s |\n", f.Name, env, value, what)
	})
}
