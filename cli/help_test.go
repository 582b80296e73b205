package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/store"
)

// TestHelpTeaches: every command says what it is for, and every one that does
// something shows how it is used.
func TestHelpTeaches(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" {
			return
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short is %q", c.CommandPath(), c.Short)
		}
		isGroup := len(c.Commands()) > 0
		if !isGroup && c.Example == "" && c.Name() != "version" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Long + "\n" + c.Example) {
			if len(line) > 81 {
				t.Errorf("%s: a line of help is longer than 80 characters: %s", c.CommandPath(), line)
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRoot(newTerminal().session(nil)))
}

func TestCompletion(t *testing.T) {
	term := newTerminal()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := term.output(nil, "completion", shell); len(got) < 1000 {
			t.Errorf("%s: %s", shell, got)
		}
	}
	if got := term.output(nil, "__complete", "get", ""); !strings.Contains(got, "networkpolicies\n") {
		t.Errorf("got %s", got)
	}
	term.output(nil, "apply", "-f", "testdata/cluster.yaml")
	for _, c := range []struct{ args, want string }{
		{"get nodes", "node01 node02"},
		{"describe no", "node01 node02"},
		{"get pods -n policy-demo", "access nginx-1 nginx-2"},
		{"delete svc -n nowhere", ""},
		{"label netpol -n policy-demo", "access-nginx deny-all everything"},
		{"get nothing", ""},
	} {
		got := term.output(nil, append(append([]string{"__complete"}, strings.Fields(c.args)...), "")...)
		names, _, _ := strings.Cut(got, ":4\n")
		if strings.Join(strings.Fields(names), " ") != c.want {
			t.Errorf("%s <TAB>: %q, want %s", c.args, got, c.want)
		}
	}
	term.store.SetDown(true)
	if got := term.output(nil, "__complete", "get", "nodes", ""); strings.Contains(got, "master") {
		t.Errorf("without a store: %s", got)
	}
}

func TestMoreCommands(t *testing.T) {
	var opened store.Store
	own := func(s *Session) *cobra.Command {
		s.AddSettings(func() []Setting {
			return []Setting{{Name: "node-name", Value: "n1", Source: "host name", Help: "what"}}
		})
		return &cobra.Command{Use: "agent", Short: "Run", Example: "x", RunE: func(cmd *cobra.Command, _ []string) (err error) {
			opened, err = s.OpenStore(cmd.Context())
			return errors.Join(err, errors.New("stopped"))
		}}
	}
	term := newTerminal()
	root := newRoot(term.session(nil), own)
	var out strings.Builder
	if code := run(t.Context(), root, []string{"agent"}, &out, &out); code != ExitFailed || out.String() != "error: stopped\n" || opened == nil {
		t.Errorf("%d %s", code, out.String())
	}
	out.Reset()
	run(t.Context(), newRoot(term.session(nil), own), []string{"config", "explain"}, &out, &out)
	if !strings.Contains(out.String(), "node-name") {
		t.Errorf("got %s", out.String())
	}
}
