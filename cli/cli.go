package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/etcd"
	"github.com/twill-net/twill/store/kube"
)

// Exit codes of every command.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitUnreachable = 3 // the store
)

// Session is what the commands of one invocation share.
type Session struct {
	version    string
	connection connection
	settings   []func() []Setting

	open     func(context.Context, etcd.Config) (store.Store, error)
	openKube func(context.Context, kube.Config) (store.Store, error)
	now      func() time.Time
	getenv   func(string) string
	labs     func() ([]string, error) // the sockets of running labs
}

// Now is the current time, by which ages are counted.
func (s *Session) Now() time.Time { return s.now() }

// New returns the root command. The functions make further subcommands, which
// may use the session's store.
func New(version string, more ...func(*Session) *cobra.Command) *cobra.Command {
	s := &Session{version: version, open: etcd.Open, openKube: kube.Open, now: time.Now, getenv: os.Getenv, labs: runningLabs}
	return newRoot(s, more...)
}

func newRoot(s *Session, more ...func(*Session) *cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use:   "twill",
		Short: "Kubernetes networking: pods, services and policies on any Linux",
		Long: `twill shows and changes what a Twill network is asked to do.

Objects are those that you know: Namespace, Node, Service, EndpointSlice and
NetworkPolicy of Kubernetes, IPPool of Calico, and FabricConfiguration, which
says how nodes reach each other's pods. They are kept in etcd, or in the API of
a Kubernetes cluster; nodes follow within a moment.

The store is found by --etcd-endpoints or --kubeconfig, or TWILL_ETCD_ENDPOINTS
or TWILL_KUBECONFIG; without these it is the cluster of the pod that this runs
in, or the lab that runs on this machine, else etcd on 127.0.0.1:2379.
"twill config explain" tells which.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the store can't be reached.`,
		Example: `  twill apply -f policy.yaml       write what a file says
  twill get pods -A -o wide        every pod, its address and its node
  twill describe netpol NAME       a policy in words`,
		Args:          cobra.ArbitraryArgs,
		RunE:          needsSubcommand,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       s.version,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	s.connection.register(root.PersistentFlags())
	root.AddCommand(newApply(s), newCleanup(), newConfig(s), newController(s), newCreate(s), newDelete(s),
		newDescribe(s), newFabric(s), newGet(s), newInstall(s), newLab(), newLabel(s), newPlan(s), newPreflight(), newStatus(s),
		newTrace(s), newUninstall(s), newVersion(s))
	for _, make := range more {
		root.AddCommand(make(s))
	}
	return root
}

// Main runs the command line and returns the exit code. Interrupt and
// termination end the command's context.
func Main(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, root, os.Args[1:], os.Stdout, os.Stderr)
}

func run(ctx context.Context, root *cobra.Command, args []string, out, errOut io.Writer) int {
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	started := false
	whenStarted(root, func() { started = true })
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	var usage usageError
	isUsage := !started || errors.As(err, &usage)
	label := "error: "
	if colours(errOut) {
		label = "\x1b[31merror:\x1b[0m "
	}
	for line := range strings.Lines(strings.TrimRight(err.Error(), "\n")) {
		fmt.Fprintln(errOut, label+printable(strings.TrimSuffix(line, "\n")))
	}
	switch {
	case isUsage:
		return ExitUsage
	case errors.Is(err, store.ErrUnavailable):
		return ExitUnreachable
	}
	return ExitFailed
}

// usageError is an error of the one who typed.
type usageError struct{ error }

// Usage marks an error as one of whoever typed, for commands made elsewhere.
func Usage(err error) error { return usageError{err} }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// takes is for commands with so many arguments: with another number it says how the
// command is called.
func takes(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("%d arguments are given, %d are needed: %s", len(args), n, cmd.UseLine())
		}
		return nil
	}
}

// whenStarted calls f before any command's own code: whatever fails earlier is
// wrong usage (an unknown command or flag, too many arguments).
func whenStarted(cmd *cobra.Command, f func()) {
	if inner := cmd.RunE; inner != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			f()
			return inner(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		whenStarted(sub, f)
	}
}

// needsSubcommand is the RunE of a command that is only a group.
func needsSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2 // letters that may differ
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("unknown command %q for %q%s", args[0], cmd.CommandPath(), hint)
}

// colours says whether to colour what goes to w: only on a terminal, and not
// when NO_COLOR is set (no-color.org).
func colours(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))
}
