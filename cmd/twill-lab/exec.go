package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/load"
)

// nameThenCommand checks for NAME -- COMMAND...; the two dashes keep the flags
// of the command from being read as ours.
func nameThenCommand(c *cobra.Command, args []string, optional bool) error {
	dash := c.ArgsLenAtDash()
	switch {
	case dash == -1 && len(args) == 1 && optional:
		return nil
	case dash == 1 && len(args) > 1:
		return nil
	}
	return usagef("one name and, after --, a command are needed; usage: %s", c.UseLine())
}

// into replaces this process by a command at a place.
func (o *options) into(at lab.Place, argv []string) error {
	client, err := o.dial()
	if err != nil {
		return err
	}
	entrance, err := client.Enter(at)
	client.Close()
	if err != nil {
		return err
	}
	return entrance.Exec(argv)
}

func execCommand(o *options) *cobra.Command {
	var namespace string
	c := &cobra.Command{
		Use:     "exec POD -- COMMAND...",
		Short:   "Execute a command in a pod",
		Example: "  twill lab exec access -n policy-demo -- wget -q nginx -O -",
		Args:    func(c *cobra.Command, args []string) error { return nameThenCommand(c, args, false) },
		RunE: func(_ *cobra.Command, args []string) error {
			return o.into(lab.Pod(namespace, args[0]), args[1:])
		},
		ValidArgsFunction: o.completePods(&namespace, false),
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "the pod's namespace")
	return c
}

func nodeCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "node NODE -- COMMAND...",
		Short:   "Execute a command on a node",
		Example: "  twill lab node master -- nft list ruleset",
		Args:    func(c *cobra.Command, args []string) error { return nameThenCommand(c, args, false) },
		RunE: func(_ *cobra.Command, args []string) error {
			return o.into(lab.Node(args[0]), args[1:])
		},
		ValidArgsFunction: o.completeNodes(),
	}
}

func kubectlCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl ARGUMENTS...",
		Short: "Run kubectl on the master of a lab with Kubernetes",
		Example: `  twill lab up --kubernetes ~/.cache/twill/kubernetes-1.34.4
  twill lab kubectl apply -f deploy/crds -f deploy/twill.yaml
  twill lab kubectl get nodes`,
		DisableFlagParsing: true, // they are kubectl's
		RunE: func(_ *cobra.Command, args []string) error {
			client, err := o.dial()
			if err != nil {
				return err
			}
			client.Close()
			argv, err := client.Config.Kubectl(args)
			if err != nil {
				return err
			}
			return o.into(lab.Node(lab.NodeName(0)), argv)
		},
	}
}

func outsideCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "outside -- COMMAND...",
		Short:   "Execute a command on the host outside the cluster",
		Example: "  twill lab outside -- wget -q 172.16.10.10:30080 -O -",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return o.into(lab.Outside(), args)
		},
	}
}

func loadCommand(o *options) *cobra.Command {
	var from, namespace, output string
	var rate int
	var period time.Duration
	c := &cobra.Command{
		Use:   "load --from POD|NODE|outside TARGET...",
		Short: "Send requests at a steady rate and count the lost ones",
		Long: `Sends requests to each target: http://HOST[:PORT] makes a new connection for each,
udp://HOST[:PORT] has datagrams echoed, stream://HOST[:PORT] uses one connection
for all. What is not answered within a second is lost; then the exit code is 1.`,
		Example: "  twill lab load --from access -n policy-demo --rate 1000 --for 10s http://nginx udp://nginx stream://nginx",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, text := range args {
				if _, err := load.ParseTarget(text); err != nil {
					return usageError{err}
				}
			}
			if period < 0 || rate < 1 {
				return usagef("--rate %d --for %s: the rate is at least 1, and the time not negative", rate, period)
			}
			argv := []string{"load", "--rate", strconv.Itoa(rate), "--for", period.String()}
			if output != "" {
				argv = append(argv, "-o", output)
			}
			return o.into(placeOf(from, namespace), append(argv, args...))
		},
	}
	f := c.Flags()
	f.StringVar(&from, "from", "outside", "where the requests come from: a pod, node/NAME or outside")
	f.StringVarP(&namespace, "namespace", "n", "default", "the pod's namespace")
	f.IntVar(&rate, "rate", 1000, "requests a second to each target")
	f.DurationVar(&period, "for", 10*time.Second, "how long; 0: until interrupted")
	f.StringVarP(&output, "output", "o", "", "json for programs")
	return c
}

func placeOf(from, namespace string) lab.Place {
	if node, ok := strings.CutPrefix(from, "node/"); ok {
		return lab.Node(node)
	}
	if from == "outside" {
		return lab.Outside()
	}
	return lab.Pod(namespace, from)
}

func agentCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "agent NODE stop|start|kill",
		Short: "Stop, start or kill (-9) a node's agent",
		Args:  arguments(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			return o.control(lab.ControlRequest{Node: args[0], Action: lab.Action(args[1])})
		},
		ValidArgsFunction: o.completeNodes(actions...),
	}
}

func controlCommand(o *options, process string) *cobra.Command {
	return &cobra.Command{
		Use:       process + " stop|start|kill",
		Short:     "Stop, start or kill (-9) the lab's " + process,
		Args:      arguments(cobra.ExactArgs(1)),
		ValidArgs: actions,
		RunE: func(_ *cobra.Command, args []string) error {
			return o.control(lab.ControlRequest{Process: process, Action: lab.Action(args[0])})
		},
	}
}

func (o *options) control(r lab.ControlRequest) error {
	if err := r.Action.Check(); err != nil {
		return usageError{err}
	}
	client, err := o.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Control(r)
}
