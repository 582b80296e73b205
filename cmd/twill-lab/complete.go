package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/lab"
)

var actions = []string{string(lab.Stop), string(lab.Start), string(lab.Kill)}

// completer offers what may stand as the argument after those that are there.
type completer func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective)

// complete offers names in the lab; of nothing, if it does not answer.
func (o *options) complete(names func(status lab.Status, args []string) []string) completer {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		client, err := o.dial()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer client.Close()
		status, err := client.Status()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names(status, args), cobra.ShellCompDirectiveNoFileComp
	}
}

// completePods offers the pods of a namespace: one, or any number.
func (o *options) completePods(namespace *string, many bool) completer {
	return o.complete(func(s lab.Status, args []string) (names []string) {
		for _, p := range s.Pods {
			if p.Namespace == *namespace && (many || len(args) == 0) && !slices.Contains(args, p.Name) {
				names = append(names, p.Name)
			}
		}
		return names
	})
}

// completeNodes offers a node, then words.
func (o *options) completeNodes(then ...string) completer {
	return o.complete(func(s lab.Status, args []string) (names []string) {
		switch len(args) {
		case 0:
			for _, n := range s.Nodes {
				names = append(names, n.Name)
			}
		case 1:
			names = then
		}
		return names
	})
}

// completeLogs offers whoever has a log.
func (o *options) completeLogs(namespace *string) completer {
	return o.complete(func(s lab.Status, args []string) []string {
		if len(args) > 0 {
			return nil
		}
		names := []string{"etcd", "controller", "supervisor"}
		for _, n := range s.Nodes {
			names = append(names, n.Name)
		}
		for _, p := range s.Pods {
			if p.Namespace == *namespace {
				names = append(names, p.Name)
			}
		}
		return names
	})
}
