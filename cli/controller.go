package cli

import (
	"log/slog"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/controller"
)

func newController(s *Session) *cobra.Command {
	var services, pods []string
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run what a cluster needs once: pools, cluster IPs, node ports, endpoint slices",
		Long: `Run the controller of a cluster: it makes the first pools of pod addresses and
takes back what belonged to nodes that are gone. Without Kubernetes it also
gives services their cluster IPs and node ports, and keeps EndpointSlices in
step with pods. Several may run: one acts, the others wait.`,
		Example: `  twill controller --service-cidr 10.1.0.0/16
  twill controller --service-cidr 10.1.0.0/16,fd00:10:1::/112
  twill controller --pod-cidr 10.244.0.0/16`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			config := controller.Config{Logger: log}
			var err error
			if config.ServiceCIDRs, err = parseRanges("--service-cidr", services); err != nil {
				return err
			}
			if config.PodCIDRs, err = parseRanges("--pod-cidr", pods); err != nil {
				return err
			}
			st, err := s.OpenClusterStore(cmd.Context(), log)
			if err != nil {
				return err
			}
			defer st.Close()
			return controller.New(st, config).Run(cmd.Context())
		},
	}
	cmd.Flags().StringSliceVar(&services, "service-cidr", []string{"10.1.0.0/16"}, "ranges of cluster IPs, at most one of a family; Kubernetes has its own")
	cmd.Flags().StringSliceVar(&pods, "pod-cidr", nil, "ranges that become pools of pod addresses while there is no pool of the family")
	return cmd
}

func parseRanges(flag string, texts []string) (ranges []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, usagef("%s: %w", flag, err)
		}
		if p != p.Masked() {
			return nil, usagef("%s %s has bits set beyond its length: write %s", flag, p, p.Masked())
		}
		ranges = append(ranges, p)
	}
	return ranges, nil
}
