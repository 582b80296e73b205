package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/lab"
)

func upCommand(o *options) *cobra.Command {
	var cfg lab.Config
	var pools []string
	c := &cobra.Command{
		Use:   "up",
		Short: "Make the lab and return when it is ready",
		Args:  arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg.Name = o.name
			for _, text := range pools {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return usagef("--pool: %v", err)
				}
				cfg.Pools = append(cfg.Pools, p)
			}
			if err := cfg.Check(); err != nil {
				return usageError{err}
			}
			began := time.Now()
			err := lab.Up(c.Context(), cfg, func(step string) {
				fmt.Fprintf(c.ErrOrStderr(), "%5.2fs  %s\n", time.Since(began).Seconds(), step)
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "%5.2fs  lab %q is up: see \"twill lab status\"\n", time.Since(began).Seconds(), cfg.Name)
			return nil
		},
	}
	c.Flags().IntVar(&cfg.Nodes, "nodes", 3, "how many nodes")
	c.Flags().BoolVar(&cfg.DualStack, "dual-stack", false, "give nodes, pods and services IPv6 addresses too")
	c.Flags().BoolVar(&cfg.NAT, "nat", false, "give each node an older second device with the same address on every node and the default routes, as Vagrant does")
	c.Flags().StringSliceVar(&pools, "pool", nil, "range of pod addresses, at most one of a family (default 10.244.0.0/16,fd00:10:244::/56)")
	c.Flags().BoolVar(&cfg.KubeProxy, "kube-proxy", false, "with --kubernetes: have its own kube-proxy serve Services, in its nftables mode")
	c.Flags().StringVar(&cfg.Kubernetes, "kubernetes", "", "make it a real Kubernetes without a network, from the programs in this directory (see \"make kubernetes\")")
	c.Flags().StringVar(&cfg.Executables, "executables", "", "directory of twill, twill-cni and twill-lab (default where this executable is)")
	return c
}

func downCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the lab and remove what is left of it, also after a crash",
		Args:  arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			found, err := lab.Down(o.name)
			if err == nil && !found {
				fmt.Fprintf(c.ErrOrStderr(), "there is no lab %q\n", o.name)
			}
			return err
		},
	}
}

func statusCommand(o *options) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show nodes, agents and pods",
		Args:  arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return usagef("output %q: only json is known", output)
			}
			client, err := o.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			status, err := client.Status()
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(status)
			}
			return printStatus(c.OutOrStdout(), status)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "json for programs")
	return c
}

func printStatus(out io.Writer, s lab.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "LAB\tETCD\tCONTROLLER\tSTORE\n%s\t%s\t%s\t%s\n\n", s.Name, describe(s.Etcd), describe(s.Controller), s.Endpoint)
	fmt.Fprintf(w, "NODE\tADDRESS\tAGENT\n")
	for _, n := range s.Nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\n", n.Name, list(n.Addresses), describe(n.Agent))
	}
	fmt.Fprintf(w, "\nNAMESPACE\tPOD\tNODE\tADDRESS\tSTATE\n")
	for _, p := range s.Pods {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", p.Namespace, p.Name, p.Node, list(p.Addresses), p.State)
	}
	return w.Flush()
}

func describe(p lab.ProcessStatus) string {
	switch {
	case p.Running:
		return fmt.Sprintf("running (pid %d)", p.PID)
	case p.Ended != "":
		return "ended: " + p.Ended
	}
	return "not started"
}

func list(addresses []netip.Addr) string {
	texts := make([]string, len(addresses))
	for i, a := range addresses {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

func logsCommand(o *options) *cobra.Command {
	var namespace string
	c := &cobra.Command{
		Use:               "logs NODE|POD|etcd|controller|supervisor",
		Short:             "Print what a node's agent, a pod or another process of the lab has written",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: o.completeLogs(&namespace),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := o.dial()
			if err != nil {
				return err
			}
			client.Close()
			candidates := []string{args[0], "agent-" + args[0], "pod-" + namespace + "-" + args[0]}
			if c.Flags().Changed("namespace") {
				candidates = candidates[2:]
			}
			for _, process := range candidates {
				f, err := os.Open(lab.LogPath(o.name, process))
				if os.IsNotExist(err) {
					continue
				}
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = io.Copy(c.OutOrStdout(), f)
				return err
			}
			return fmt.Errorf("there is no log of %q: name a node, a pod (with -n), etcd, controller or supervisor", args[0])
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "the pod's namespace")
	return c
}
