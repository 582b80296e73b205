package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

type getCommand struct {
	*Session
	selection
	output     string
	watch      bool
	showLabels bool
	noHeaders  bool
}

func newGet(s *Session) *cobra.Command {
	g := &getCommand{Session: s}
	cmd := &cobra.Command{
		Use:     "get KIND[,KIND...] [NAME...]",
		Aliases: []string{"list"},
		Short:   "List objects",
		Long: `List objects of one or more kinds, by name, by label, or all.

Kinds may be written in full, in the plural or short: networkpolicies, netpol;
services, svc; pods, po; nodes, no; namespaces, ns; ippools, pools; ipamblocks,
blocks; endpointslices, eps; fabricconfigurations, fabric; leases.

-o yaml and -o json print the objects as "twill apply" takes them. With --watch
the command goes on and shows every change; in yaml and json each is then an
object with "type" (put or deleted) and "object".`,
		Example: `  twill get pods -A -o wide
  twill get pods,services -n policy-demo -l app=nginx
  twill get netpol access-nginx -n policy-demo -o yaml
  twill get svc/nginx netpol/access-nginx -n policy-demo
  twill get nodes --watch`,
		RunE: g.run,
	}
	g.selection.register(cmd, s)
	cmd.Flags().StringVarP(&g.output, "output", "o", "table", "table, wide, json, yaml or name")
	cmd.Flags().BoolVarP(&g.watch, "watch", "w", false, "go on and show changes")
	cmd.Flags().BoolVar(&g.showLabels, "show-labels", false, "add a column with all labels")
	cmd.Flags().BoolVar(&g.noHeaders, "no-headers", false, "leave the columns' titles out")
	return cmd
}

var outputs = []string{"table", "wide", "json", "yaml", "name"}

func (g *getCommand) run(cmd *cobra.Command, args []string) error {
	if err := g.parse(args); err != nil {
		return err
	}
	if !slices.Contains(outputs, g.output) {
		return usagef("--output %q: there are %s", g.output, strings.Join(outputs, ", "))
	}
	if g.watch && len(g.kinds) > 1 {
		return usagef("--watch follows one kind")
	}
	st, err := g.OpenStore(cmd.Context())
	if err != nil {
		return err
	}
	defer st.Close()
	if g.watch {
		return g.follow(cmd, st)
	}
	if g.output == "json" || g.output == "yaml" {
		return g.printObjects(cmd, st)
	}
	var errs []error
	empty := true
	for i, kind := range g.kinds {
		objects, err := g.objects(cmd.Context(), st, kind)
		errs = append(errs, err)
		if len(objects) == 0 {
			continue
		}
		if g.output == "name" {
			for _, obj := range objects {
				fmt.Fprintln(cmd.OutOrStdout(), resource(obj))
			}
			empty = false
			continue
		}
		if !empty && i > 0 {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		empty = false
		errs = append(errs, g.printTable(cmd, st, kind, objects))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if empty {
		fmt.Fprintln(cmd.ErrOrStderr(), g.nothingFound())
	}
	return nil
}

func (g *getCommand) nothingFound() string {
	text := "no " + plural(g.kinds[0])
	if len(g.kinds) > 1 {
		text = "nothing"
	}
	if g.selector != "" {
		text += " with labels " + g.selector
	}
	if g.in(g.kinds[0]) != "" {
		text += fmt.Sprintf(" in namespace %q (-A shows all)", g.namespace)
	}
	return text
}

func (g *getCommand) printTable(cmd *cobra.Command, st store.Store, kind *api.Kind, objects []api.Object) error {
	v, err := g.newView(cmd.Context(), st, kind)
	if err != nil {
		return err
	}
	t, columns := g.newTable(kind)
	for _, obj := range objects {
		t.add(g.cells(columns, v, obj)...)
	}
	t.print(cmd.OutOrStdout())
	return nil
}

// newTable is an empty table for the kind, and the columns that fill it.
func (g *getCommand) newTable(kind *api.Kind) (*table, []column) {
	var columns []column
	if g.all && kind.Namespaced {
		columns = append(columns, column{title: "NAMESPACE", value: func(_ view, obj api.Object) string { return obj.GetNamespace() }})
	}
	for _, c := range columnsOf(kind) {
		if c.title == "NAME" && len(g.kinds) > 1 {
			c.value = func(_ view, obj api.Object) string { return resource(obj) }
		}
		if !c.wide || g.output == "wide" {
			columns = append(columns, c)
		}
	}
	if g.showLabels {
		columns = append(columns, column{title: "LABELS", value: func(_ view, obj api.Object) string { return formatLabels(obj.GetLabels()) }})
	}
	t := &table{noHeader: g.noHeaders}
	for _, c := range columns {
		t.columns = append(t.columns, c.title)
	}
	return t, columns
}

func (g *getCommand) cells(columns []column, v view, obj api.Object) []string {
	cells := make([]string, len(columns))
	for i, c := range columns {
		cells[i] = c.value(v, obj)
	}
	return cells
}

// printObjects prints one object that was asked for by name as itself, and
// anything else as a List.
func (g *getCommand) printObjects(cmd *cobra.Command, st store.Store) error {
	items := []api.Object{}
	var errs []error
	named := 0
	for _, kind := range g.kinds {
		objects, err := g.objects(cmd.Context(), st, kind)
		items, errs = append(items, objects...), append(errs, err)
		named += len(g.names[kind])
	}
	var what any = map[string]any{"apiVersion": "v1", "kind": "List", "items": items}
	if named == 1 && len(items) == 1 {
		what = items[0]
	}
	if named == 0 || len(items) > 0 {
		errs = append(errs, encode(cmd.OutOrStdout(), g.output, what))
	}
	return errors.Join(errs...)
}

func encode(w io.Writer, form string, what any) error {
	var text []byte
	var err error
	if form == "yaml" {
		text, err = yaml.Marshal(what)
	} else {
		text, err = json.MarshalIndent(what, "", "    ")
		text = append(text, '\n')
	}
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
