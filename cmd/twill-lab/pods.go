package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/lab"
)

func runCommand(o *options) *cobra.Command {
	var r lab.RunRequest
	var labels, ports []string
	var attached bool
	c := &cobra.Command{
		Use:   "run NAME [-- COMMAND...]",
		Short: "Make a pod, attached by the CNI executable",
		Long: `Makes a pod. Without a command it serves a small web page that tells its name,
node and address and the client's address as it sees it, and echoes datagrams
that come to the same port. With a command that runs in the background, or with
--rm in the foreground, and then the pod is removed.`,
		Example: `  twill lab run nginx -n policy-demo -l app=nginx --replicas 2
  twill lab run access -n policy-demo -l run=access --rm -- wget -q nginx -O -`,
		Args: func(c *cobra.Command, args []string) error { return nameThenCommand(c, args, !attached) },
		RunE: func(c *cobra.Command, args []string) error {
			r.Name, r.Command = args[0], args[1:]
			r.Idle = attached
			var err error
			if r.Labels, err = parseLabels(labels); err != nil {
				return err
			}
			for _, text := range ports {
				p, err := lab.ParsePort(text)
				if err != nil {
					return usageError{err}
				}
				r.Ports = append(r.Ports, p)
			}
			if attached && r.Replicas != 1 {
				return usagef("--rm shows one pod's output: it can't be used with --replicas")
			}
			if err := r.Check(); err != nil {
				return usageError{err}
			}
			client, err := o.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			if attached {
				return runAttached(c, client, r)
			}
			pods, err := client.Run(r)
			for _, p := range pods {
				fmt.Fprintf(c.OutOrStdout(), "pod %s/%s runs on %s with %s\n", p.Namespace, p.Name, p.Node, list(p.Addresses))
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVarP(&r.Namespace, "namespace", "n", "default", "the pod's namespace, made if there is none")
	f.StringSliceVarP(&labels, "labels", "l", nil, "labels as KEY=VALUE")
	f.StringVar(&r.Node, "node", "", "the node (default: one after the other)")
	f.IntVar(&r.Replicas, "replicas", 1, "how many pods: NAME-1, NAME-2 ...")
	f.StringSliceVar(&ports, "port", nil, "ports as [NAME=]PORT[/tcp|/udp], at which the web server listens, for both protocols if none is given (default 80)")
	f.BoolVar(&attached, "rm", false, "run the command in the foreground, then remove the pod")
	return c
}

func parseLabels(texts []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return nil, usagef("label %q: write KEY=VALUE", text)
		}
		labels[key] = value
	}
	return labels, nil
}

// runAttached executes the command in an otherwise idle pod.
func runAttached(c *cobra.Command, client *lab.Client, r lab.RunRequest) (err error) {
	if _, err := client.Run(r); err != nil {
		return err
	}
	defer func() {
		if _, e := client.Remove(lab.RemoveRequest{Namespace: r.Namespace, Names: []string{r.Name}}); e != nil {
			err = errors.Join(err, e)
		}
	}()
	cmd, err := client.Command(c.Context(), lab.Pod(r.Namespace, r.Name), r.Command...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, c.OutOrStdout(), c.ErrOrStderr()
	// After Ctrl-C the command decides when it ends; then the pod is removed.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err = cmd.Run()
	var failed *exec.ExitError
	if errors.As(err, &failed) && failed.ExitCode() >= 0 {
		return exitCode(failed.ExitCode())
	}
	return err
}

func removeCommand(o *options) *cobra.Command {
	var r lab.RemoveRequest
	var labels []string
	c := &cobra.Command{
		Use:   "rm NAME... | -l KEY=VALUE",
		Short: "Detach and end pods",
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			if r.Labels, err = parseLabels(labels); err != nil {
				return err
			}
			if (len(args) == 0) == (len(labels) == 0) {
				return usagef("name pods, or choose them with -l; usage: %s", c.UseLine())
			}
			r.Names = args
			client, err := o.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			names, err := client.Remove(r)
			for _, name := range names {
				fmt.Fprintf(c.OutOrStdout(), "pod %s/%s is removed\n", r.Namespace, name)
			}
			return err
		},
		ValidArgsFunction: o.completePods(&r.Namespace, true),
	}
	c.Flags().StringVarP(&r.Namespace, "namespace", "n", "default", "the pods' namespace")
	c.Flags().StringSliceVarP(&labels, "labels", "l", nil, "all pods with these labels")
	return c
}
