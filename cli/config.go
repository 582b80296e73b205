package cli

import (
	"github.com/spf13/cobra"
)

// Setting is one setting with its effective value.
type Setting struct {
	Name   string
	Value  string // empty: none
	Source string // where the value comes from, such as "flag --etcd-cert"
	Help   string // what it is for
}

// AddSettings has "config explain" show further settings. The function is
// called when the command runs, after flags were parsed.
func (s *Session) AddSettings(settings func() []Setting) {
	s.settings = append(s.settings, settings)
}

func newConfig(s *Session) *cobra.Command {
	config := &cobra.Command{
		Use:   "config",
		Short: "Show the settings in force",
		RunE:  needsSubcommand,
	}
	config.AddCommand(&cobra.Command{
		Use:   "explain",
		Short: "Show every setting: its value, where that comes from, what it is for",
		Long: `Show every setting with the value in force and where that comes from.

A flag wins over the environment, the environment over what was detected (such
as a lab that runs on this machine), and that over the default.`,
		Example: `  twill config explain
  TWILL_ETCD_ENDPOINTS=https://etcd-1:2379 twill config explain`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			settings, err := s.resolve()
			if err != nil {
				return err
			}
			for _, more := range s.settings {
				settings = append(settings, more()...)
			}
			t := table{columns: []string{"SETTING", "VALUE", "FROM", "WHAT IT IS"}}
			for _, setting := range settings {
				t.add(setting.Name, orNone(setting.Value), setting.Source, setting.Help)
			}
			t.print(cmd.OutOrStdout())
			return nil
		},
	})
	return config
}
