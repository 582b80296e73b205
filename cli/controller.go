package cli

import (
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/controller"
	"github.com/twill-net/twill/store"
)

func newController(s *Session) *cobra.Command {
	var cidrs []string
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run what a cluster needs once: cluster IPs, node ports, endpoint slices",
		Long: `Run the controller of a cluster without Kubernetes: it gives services their
cluster IPs and node ports, keeps EndpointSlices in step with pods, and takes
back what belonged to nodes that are gone. Several may run: one acts, the
others wait.`,
		Example: `  twill controller --service-cidr 10.1.0.0/16
  twill controller --service-cidr 10.1.0.0/16,fd00:10:1::/112`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config := controller.Config{Logger: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))}
			for _, text := range cidrs {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return usagef("--service-cidr: %w", err)
				}
				if p != p.Masked() {
					return usagef("--service-cidr %s has bits set beyond its length: write %s", p, p.Masked())
				}
				config.ServiceCIDRs = append(config.ServiceCIDRs, p)
			}
			st, err := s.OpenClusterStore(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			if o, ok := st.(store.Orchestrated); ok {
				return fmt.Errorf("%s gives services their addresses and makes their endpoint slices itself: don't run this controller there", o.Orchestrator())
			}
			return controller.New(st, config).Run(cmd.Context())
		},
	}
	cmd.Flags().StringSliceVar(&cidrs, "service-cidr", []string{"10.1.0.0/16"}, "ranges of cluster IPs, at most one of a family")
	return cmd
}
