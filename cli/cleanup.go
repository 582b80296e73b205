package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/plan"
)

type cleanupCommand struct {
	yes, files                         bool
	root                               string
	runDir, stateDir, confDir, execDir string
}

func newCleanup() *cobra.Command {
	var c cleanupCommand
	cmd := &cobra.Command{
		Use:   "cleanup --yes",
		Short: "Remove everything of Twill from this host's kernel",
		Long: `Remove everything of Twill from the kernel of this host: the nftables table
"inet twill", the tunnel device, the host ends of pods' interfaces, and routes
of our protocol; and put sysctls back to what they were. What is done is
printed. Stop the agent first: it would put everything back.

With --files it also removes what an agent wrote on this host: the journal of
addresses, and where the container runtime looks, its configuration and
twill-cni. "twill uninstall" does all of this on each node of a cluster.

Pods of this host are cut off, which is why --yes is needed.`,
		Example: `  twill cleanup --yes
  twill cleanup --yes --files`,
		Args: cobra.NoArgs,
		RunE: c.run,
	}
	cmd.Flags().BoolVar(&c.yes, "yes", false, "do it")
	cmd.Flags().BoolVar(&c.files, "files", false, "also remove files")
	cmd.Flags().StringVar(&c.root, "root", "/", "where the host's file system is, in a container")
	cmd.Flags().StringVar(&c.runDir, "run-dir", plan.RunDir, "the agent's --run-dir, where it noted what sysctls were")
	cmd.Flags().StringVar(&c.stateDir, "state-dir", plan.StateDir, "the agent's --state-dir")
	cmd.Flags().StringVar(&c.confDir, "cni-conf-dir", plan.CNIConfDir, "where the container runtime looks for network configuration")
	cmd.Flags().StringVar(&c.execDir, "cni-bin-dir", plan.CNIBinDir, "where the container runtime looks for executables")
	return cmd
}

func (c *cleanupCommand) run(cmd *cobra.Command, _ []string) error {
	if !c.yes {
		return usagef("this cuts off the pods of this host: say --yes if that is meant")
	}
	var errs []error
	did := func(verb string, what []string, err error) {
		for _, one := range what {
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", verb, one)
		}
		errs = append(errs, err)
	}
	// The configuration first: a runtime that finds it would ask for pods meanwhile.
	if c.files {
		removed, err := c.removeFiles()
		did("removed", removed, err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	removed, err := nft.Cleanup(log)
	did("removed", removed, err)
	removed, err = route.Cleanup(log)
	did("removed", removed, err)
	restored, err := route.RestoreSysctls(filepath.Join(c.root, c.runDir, plan.SysctlOriginals))
	did("restored", restored, err)
	if c.files {
		removed, err := c.removeDirs()
		did("removed", removed, err)
	}
	return errors.Join(errs...)
}

// removeFiles removes what bears a name of ours.
func (c *cleanupCommand) removeFiles() (removed []string, err error) {
	var errs []error
	for _, pattern := range []string{
		filepath.Join(c.confDir, plan.CNIConflist), filepath.Join(c.execDir, plan.CNIExecutable),
		filepath.Join(c.runDir, plan.CNISocket), filepath.Join(c.stateDir, plan.Journal+"*"),
	} {
		paths, err := filepath.Glob(filepath.Join(c.root, pattern))
		errs = append(errs, err)
		for _, path := range paths {
			if err := os.Remove(path); err != nil {
				errs = append(errs, err)
				continue
			}
			removed = append(removed, c.onHost(path))
		}
	}
	return removed, errors.Join(errs...)
}

// removeDirs removes the agent's directories, unless somebody else has put
// something there. One that something is mounted on is not the agent's alone.
func (c *cleanupCommand) removeDirs() (removed []string, err error) {
	var errs []error
	for _, dir := range []string{c.runDir, c.stateDir} {
		path := filepath.Join(c.root, dir)
		entries, err := os.ReadDir(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err == nil && len(entries) > 0:
			err = fmt.Errorf("%s is left: %s in it is not ours", c.onHost(path), entries[0].Name())
		case err == nil:
			err = os.Remove(path)
		}
		switch {
		case errors.Is(err, unix.EBUSY):
		case err != nil:
			errs = append(errs, err)
		default:
			removed = append(removed, c.onHost(path))
		}
	}
	return removed, errors.Join(errs...)
}

// onHost is a path as the host has it.
func (c *cleanupCommand) onHost(path string) string {
	rel, err := filepath.Rel(c.root, path)
	if err != nil {
		return path
	}
	return filepath.Join("/", rel)
}
