// Command twill-lab is the lab: `twill lab` executes it. It is apart from twill
// because it alone contains an etcd server. Inside a lab's nodes and pods it
// also is the small programs that they find in their PATH, by the name it is
// called with.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/tool"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	if code, found := tool.Run(filepath.Base(os.Args[0]), os.Args[1:], os.Stdout, os.Stderr); found {
		os.Exit(code)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, out, errs io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	// What fails before a command's own code is wrong usage.
	started := false
	begin := root.PersistentPreRunE
	root.PersistentPreRunE = func(c *cobra.Command, args []string) error {
		started = true
		return begin(c, args)
	}
	err := root.ExecuteContext(ctx)
	var code exitCode
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case !started || errors.As(err, &usage):
		fmt.Fprintf(errs, "twill lab: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(errs, "twill lab: %v\n", err)
	return exitFailed
}

// exitCode ends the program with a code that a command inside the lab gave; all
// has been said.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// usageError is a mistake in how a command was called.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// options are the flags that every command has.
type options struct{ name string }

// dial connects to the lab.
func (o *options) dial() (*lab.Client, error) { return lab.Dial(o.name) }

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "twill-lab",
		Short: "A cluster of network namespaces on this machine",
		Long: `A lab is a cluster on this machine: its nodes are network namespaces with a real
agent each, its pods are attached by the real CNI executable. It needs Linux
and root, uses nothing of the host's network, and leaves nothing behind.`,
		Example: `  twill lab up
  twill lab run nginx -l app=nginx --replicas 2
  twill lab run access --rm -- wget -q 10.244.0.2 -O -
  twill lab status
  twill lab down`,
		Annotations:       map[string]string{cobra.CommandDisplayNameAnnotation: "twill lab"},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.NoArgs,
		TraverseChildren:  true, // kubectl's flags are not ours, those before it are
		// Without it an unknown command would be answered with help, as if it had
		// been asked for.
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	name := os.Getenv("TWILL_LAB")
	if name == "" {
		name = lab.DefaultName
	}
	root.PersistentFlags().StringVar(&o.name, "name", name, "the lab's name, also --lab (TWILL_LAB); labs with different names don't meet")
	// twill itself says --lab where there could be another name.
	root.SetGlobalNormalizationFunc(func(_ *pflag.FlagSet, flag string) pflag.NormalizedName {
		if flag == "lab" {
			flag = "name"
		}
		return pflag.NormalizedName(flag)
	})
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if err := lab.CheckName(o.name); err != nil {
			return usageError{err}
		}
		return nil
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%v; see \"%s --help\"", err, c.CommandPath())
	})
	root.AddCommand(
		upCommand(o), downCommand(o), statusCommand(o), logsCommand(o), demoCommand(),
		runCommand(o), removeCommand(o), loadCommand(o),
		kubectlCommand(o), execCommand(o), nodeCommand(o), outsideCommand(o),
		agentCommand(o), controlCommand(o, "controller"), controlCommand(o, "etcd"), controlCommand(o, lab.APIServer),
		superviseCommand(), etcdServerCommand(), enterCommand(),
	)
	return root
}

// arguments makes a wrong number of arguments a mistake in usage.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usagef("%v; usage: %s", err, c.UseLine())
		}
		return nil
	}
}
