package main

import (
	"github.com/spf13/cobra"

	"github.com/twill-net/twill/lab/demo"
)

func demoCommand() *cobra.Command {
	var cfg demo.Config
	c := &cobra.Command{
		Use:   "demo",
		Short: "Tell the story of Twill on a lab of three nodes",
		Long: `Makes a lab of its own and goes through pods, services, policy and two changes
under load, step by step: what is expected, what is seen, how long it takes. It
stops at the first step that differs, and takes the lab down in any case.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return demo.Run(c.Context(), cfg, c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&cfg.DualStack, "dual-stack", false, "with IPv6 as well")
	c.Flags().StringVar(&cfg.Kubernetes, "kubernetes", "", "tell another story, on a real cluster whose programs are in this directory: Twill is installed with kubectl")
	c.Flags().StringVar(&cfg.Executables, "executables", "", "directory of twill, twill-cni and twill-lab (default where this executable is)")
	return c
}
