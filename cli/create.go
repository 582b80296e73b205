package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

func newCreate(s *Session) *cobra.Command {
	create := &cobra.Command{
		Use:   "create",
		Short: "Create an object without a file",
		RunE:  needsSubcommand,
	}
	create.AddCommand(&cobra.Command{
		Use:     "namespace NAME",
		Aliases: []string{"ns"},
		Short:   "Create a namespace",
		Long: `Create a namespace. It gets the label kubernetes.io/metadata.name, by which
policies can select it. It is an error if there is one with that name.`,
		Example: `  twill create namespace policy-demo`,
		Args:    takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: args[0]}}
			api.Default(ns)
			if errs := api.Validate(ns); len(errs) > 0 {
				return usageError{errs.ToAggregate()}
			}
			st, err := s.OpenStore(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			if _, err := st.Create(cmd.Context(), ns); err != nil {
				return shortened("create namespace "+ns.Name, err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), resource(ns), "created")
			return err
		},
	})
	return create
}

// shortened is "what: reason" with the store's sentinel alone where there is
// one: the store repeats what was asked.
func shortened(what string, err error) error {
	for _, sentinel := range []error{store.ErrNotFound, store.ErrExists, store.ErrConflict} {
		if errors.Is(err, sentinel) {
			return fmt.Errorf("%s: %w", what, sentinel)
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}
