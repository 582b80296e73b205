package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/dataplane/route"
)

func newCleanup() *cobra.Command {
	var yes bool
	var runDir string
	cmd := &cobra.Command{
		Use:   "cleanup --yes",
		Short: "Remove everything of Twill from this host's kernel",
		Long: `Remove everything of Twill from the kernel of this host: the nftables table
"inet twill", the tunnel device, the host ends of pods' interfaces, and routes
of our protocol; and put sysctls back to what they were. What is done is
printed. Stop the agent first: it would put everything back.

Pods of this host are cut off, which is why --yes is needed.`,
		Example: `  twill cleanup --yes`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return usagef("this cuts off the pods of this host: say --yes if that is meant")
			}
			log := slog.New(slog.NewTextHandler(io.Discard, nil))
			rules, errRules := nft.Cleanup(log)
			links, errLinks := route.Cleanup(log)
			for _, removed := range append(rules, links...) {
				fmt.Fprintf(cmd.OutOrStdout(), "removed %s\n", removed)
			}
			sysctls, errSysctls := route.RestoreSysctls(filepath.Join(runDir, "sysctl-originals"))
			for _, restored := range sysctls {
				fmt.Fprintf(cmd.OutOrStdout(), "restored %s\n", restored)
			}
			return errors.Join(errRules, errLinks, errSysctls)
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", "/run/twill", "the agent's --run-dir, where it noted what sysctls were")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}
