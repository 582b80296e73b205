package cli

import (
	"os"
	"syscall"

	"github.com/spf13/cobra"
)

// newLab runs the executable twill-lab in place of this one, as git does with
// its subcommands: the lab contains an etcd server, which nodes have no use for.
func newLab() *cobra.Command {
	return &cobra.Command{
		Use:   "lab COMMAND",
		Short: "A cluster of network namespaces on this machine",
		Long: `Make a cluster of network namespaces on this machine: real agents, the real CNI
executable, an etcd. The host's own network is not touched, and nothing is left.

"twill lab --help" lists the lab's own commands.`,
		Example: `  twill lab up
  twill lab run nginx --replicas 2 -l app=nginx
  twill lab exec shell -- wget -q -O - http://nginx
  twill lab down`,
		DisableFlagParsing: true,
		ValidArgsFunction:  completeLab,
		RunE: func(_ *cobra.Command, args []string) error {
			exe, err := siblingExecutable("twill-lab")
			if err != nil {
				return err
			}
			return syscall.Exec(exe, append([]string{"twill-lab"}, args...), os.Environ())
		},
	}
}
