package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

func newFabric(s *Session) *cobra.Command {
	fabric := &cobra.Command{
		Use:   "fabric",
		Short: "Show or change how nodes reach each other's pods",
		Long: `Show or change how nodes reach each other's pods.

Each node publishes what it can receive. A sender uses, for each peer, the first
back end in the cluster's order of preference that this peer receives and that
can reach it. So the order can be changed while traffic runs.

  vxlan     packets wrapped in UDP; works wherever the nodes reach each other
  host-gw   plain routes; needs the nodes on one link, costs nothing`,
		RunE: needsSubcommand,
	}
	fabric.AddCommand(newFabricGet(s), newFabricSet(s))
	return fabric
}

func newFabricGet(s *Session) *cobra.Command {
	return &cobra.Command{
		Use:     "get",
		Short:   "Show the order of preference and what each node receives",
		Example: `  twill fabric get`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := s.OpenStore(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			config, err := fabricConfiguration(cmd.Context(), st)
			if err != nil {
				return err
			}
			nodes, err := listOf[*corev1.Node](cmd.Context(), st, api.NodeKind, "")
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			source := ""
			if config.ResourceVersion == "" {
				source = "  (default)"
			}
			fmt.Fprintf(out, "Preference:  %s%s\n", printable(strings.Join(config.Spec.Preference, ", ")), source)
			fmt.Fprintf(out, "VXLAN:       identifier %d, UDP port %d\n\n", config.Spec.VXLAN.VNI, config.Spec.VXLAN.Port)
			t := table{columns: []string{"NODE", "ADDRESSES", "RECEIVES"}}
			for _, n := range nodes {
				t.add(n.Name, nodeAddresses(n), nodeReceives(n))
			}
			t.print(out)
			return nil
		},
	}
}

func newFabricSet(s *Session) *cobra.Command {
	var only bool
	cmd := &cobra.Command{
		Use:   "set " + strings.Join(api.Backends(), "|"),
		Short: "Prefer a back end",
		Long: `Move a back end to the front of the cluster's order of preference. The others
stay behind it, for peers that can't be reached by it. With --only there are no
others: peers that don't receive it can't be reached.`,
		Example: `  twill fabric set host-gw
  twill fabric set vxlan --only`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(api.Backends(), args[0]) {
				return fmt.Errorf("say which back end to prefer: %s", strings.Join(api.Backends(), " or "))
			}
			return nil
		},
		ValidArgs: api.Backends(),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := s.OpenStore(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			config, err := preferBackend(cmd.Context(), st, args[0], only)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "preference: %s\n", strings.Join(config.Spec.Preference, ", "))
			return err
		},
	}
	cmd.Flags().BoolVar(&only, "only", false, "use no other back end")
	return cmd
}

// fabricConfiguration is the stored configuration with defaults applied, or the
// default one, which has no resourceVersion.
func fabricConfiguration(ctx context.Context, st store.Store) (*api.FabricConfiguration, error) {
	obj, err := st.Get(ctx, api.FabricConfigurationKind, api.Key{Name: api.FabricConfigurationName})
	if errors.Is(err, store.ErrNotFound) {
		obj, err = &api.FabricConfiguration{ObjectMeta: metav1.ObjectMeta{Name: api.FabricConfigurationName}}, nil
	}
	if err != nil {
		return nil, err
	}
	api.Default(obj)
	return obj.(*api.FabricConfiguration), nil
}

func preferBackend(ctx context.Context, st store.Store, backend string, only bool) (*api.FabricConfiguration, error) {
	for try := 1; ; try++ {
		config, err := fabricConfiguration(ctx, st)
		if err != nil {
			return nil, err
		}
		// All others follow, so that this also takes back an --only.
		preference := []string{backend}
		for _, name := range append(config.Spec.Preference, api.Backends()...) {
			if !only && !slices.Contains(preference, name) {
				preference = append(preference, name)
			}
		}
		config.Spec.Preference = preference
		if config.ResourceVersion == "" {
			_, err = st.Create(ctx, config)
		} else {
			_, err = st.Update(ctx, config)
		}
		if err == nil {
			return config, nil
		}
		if overtaken := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists); !overtaken || try == applyTries {
			return nil, err
		}
	}
}
