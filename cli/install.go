package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/twill-net/twill/install"
	"github.com/twill-net/twill/store/kube"
)

type installCommand struct {
	*Session
	pods               []string
	image              string
	settings           map[string]string
	yes, force, noWait bool
	dryRun             bool
	output             string
	timeout            time.Duration
}

func newInstall(s *Session) *cobra.Command {
	i := installCommand{Session: s}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install Twill into a Kubernetes cluster",
		Long: `Install Twill into the Kubernetes cluster of a kubeconfig: that of --kubeconfig,
else $KUBECONFIG, else ~/.kube/config.

First it looks at the cluster, and prints what it found, what it will create or
update, and what is in the way: another network, ranges that overlap. Services
are left to a kube-proxy where there is one. Then it asks, does it by
server-side apply, and waits until every node is ready for pods. For a single
node "twill preflight" tells more.

What is installed is what deploy/twill.yaml has; with --dry-run -o yaml it is
printed and nothing is done.`,
		Example: `  twill install --dry-run
  twill install --kubeconfig admin.conf
  twill install --yes --pod-cidr 10.244.0.0/16 --setting TWILL_LOG_LEVEL=debug
  twill install --dry-run -o yaml > twill.yaml`,
		Args: cobra.NoArgs,
		RunE: i.run,
	}
	cmd.Flags().StringSliceVar(&i.pods, "pod-cidr", nil, "ranges of pod addresses, at most one of a family (default those of the cluster)")
	cmd.Flags().StringVar(&i.image, "image", "", "the image (default that of deploy/twill.yaml)")
	cmd.Flags().StringToStringVar(&i.settings, "setting", nil, "settings of agents, as NAME=VALUE")
	cmd.Flags().BoolVar(&i.yes, "yes", false, "don't ask")
	cmd.Flags().BoolVar(&i.force, "force", false, "whatever is in the way")
	cmd.Flags().BoolVar(&i.noWait, "no-wait", false, "don't wait until nodes are ready")
	cmd.Flags().BoolVar(&i.dryRun, "dry-run", false, "only say what would be done")
	cmd.Flags().StringVarP(&i.output, "output", "o", "", "with --dry-run: the objects as yaml or json")
	cmd.Flags().DurationVar(&i.timeout, "timeout", 5*time.Minute, "how long to wait until nodes are ready")
	return cmd
}

func (i *installCommand) run(cmd *cobra.Command, _ []string) error {
	if i.output != "" && (!i.dryRun || i.output != "yaml" && i.output != "json") {
		return usagef("--output %q: use yaml or json, with --dry-run", i.output)
	}
	for name := range i.settings {
		if !strings.HasPrefix(name, "TWILL_") {
			return usagef("--setting %s: settings begin with TWILL_, see twill config explain", name)
		}
	}
	ranges, err := parseRanges("--pod-cidr", i.pods)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	cluster, err := i.openCluster(out)
	if err != nil {
		return err
	}
	plan, err := cluster.Plan(cmd.Context(), install.Options{PodCIDRs: ranges, Image: i.image, Settings: i.settings})
	if err != nil {
		return err
	}
	if i.output != "" {
		return printObjects(out, i.output, plan)
	}
	plan.Print(out)
	if n := len(plan.Obstacles); n > 0 && !i.force {
		return fmt.Errorf("%s in the way: see above, or say --force", counted(n, "thing"))
	}
	if i.dryRun {
		return nil
	}
	if err := i.confirm(cmd, "Install?", i.yes); err != nil {
		return err
	}
	if err := cluster.Apply(cmd.Context(), plan); err != nil || i.noWait {
		return err
	}
	return cluster.Wait(cmd.Context(), i.timeout)
}

func printObjects(w io.Writer, form string, p *install.Plan) error {
	if form == "json" {
		var items []any
		for _, o := range p.Objects {
			items = append(items, o.Object)
		}
		return encode(w, form, map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
	}
	for n, o := range p.Objects {
		if n > 0 {
			fmt.Fprintln(w, "---")
		}
		if err := encode(w, form, o.Object); err != nil {
			return err
		}
	}
	return nil
}

func newUninstall(s *Session) *cobra.Command {
	var yes, dryRun bool
	var image string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove Twill from a Kubernetes cluster, and all that it left on its nodes",
		Long: `Remove Twill from the Kubernetes cluster of a kubeconfig: that of --kubeconfig,
else $KUBECONFIG, else ~/.kube/config.

It stops the agents and the controller, then runs "twill cleanup --yes --files"
in a pod on each node: what is Twill's in the kernel goes, with its files, and
sysctls are what they were before. Then all objects of Twill are deleted, pools
and blocks with their definitions. What it did is printed.

Pods are cut off. Nodes are not ready before another network is installed.`,
		Example: `  twill uninstall --dry-run
  twill uninstall --kubeconfig admin.conf
  twill uninstall --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := s.openCluster(cmd.OutOrStdout())
			if err != nil {
				return err
			}
			removal, err := cluster.Removal(cmd.Context(), image)
			if err != nil {
				return err
			}
			removal.Print(cmd.OutOrStdout())
			if dryRun {
				return nil
			}
			if err := s.confirm(cmd, "Uninstall?", yes); err != nil {
				return err
			}
			return cluster.Uninstall(cmd.Context(), removal, timeout)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be done")
	cmd.Flags().StringVar(&image, "image", "", "the image by which nodes are cleaned (default that of the agents)")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for nodes")
	return cmd
}

// openCluster opens the Kubernetes cluster that is meant. What it does is printed.
func (s *Session) openCluster(out io.Writer) (*install.Cluster, error) {
	path, err := s.clusterConfig()
	if err != nil {
		return nil, err
	}
	return install.Open(kube.Config{Kubeconfig: path, Context: s.clusterContext()}, func(line string) { fmt.Fprintln(out, printable(line)) })
}

// clusterConfig finds a kubeconfig as kubectl does, but for our own flag and
// variable.
func (s *Session) clusterConfig() (string, error) {
	if s.connection.flags.Changed("kubeconfig") {
		return s.connection.kubeconfig, nil
	}
	for _, path := range append([]string{s.getenv("TWILL_KUBECONFIG")}, filepath.SplitList(s.getenv("KUBECONFIG"))...) {
		if path != "" {
			return path, nil
		}
	}
	path := filepath.Join(s.getenv("HOME"), ".kube", "config")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "", usagef("which cluster? There is no %s: say --kubeconfig", path)
	}
	return path, nil
}

func (s *Session) clusterContext() string {
	if s.connection.flags.Changed("context") {
		return s.connection.context
	}
	return s.getenv("TWILL_CONTEXT")
}

// confirm asks on a terminal; elsewhere nobody would answer.
func (s *Session) confirm(cmd *cobra.Command, question string, yes bool) error {
	if yes {
		return nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return usagef("nobody is here to be asked: say --yes if that is meant")
	}
	fmt.Fprintf(cmd.OutOrStdout(), "\n%s [y/N] ", question)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer))) {
		return errors.New("nothing was done")
	}
	return nil
}
