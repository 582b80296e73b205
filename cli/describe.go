package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

type describeCommand struct {
	*Session
	selection
}

func newDescribe(s *Session) *cobra.Command {
	d := &describeCommand{Session: s}
	cmd := &cobra.Command{
		Use:   "describe KIND [NAME...]",
		Short: "Tell all about an object, and what it has to do with others",
		Long: `Tell all about an object in words, with what it has to do with others:
a policy with the pods that it selects, a service with its endpoints, a pod with
its policies and services, a node with its blocks and pods, a pool with its use.`,
		Example: `  twill describe netpol access-nginx -n policy-demo
  twill describe svc nginx -n policy-demo
  twill describe node node01
  twill describe pools`,
		RunE: d.run,
	}
	d.selection.register(cmd, s)
	return cmd
}

func (d *describeCommand) run(cmd *cobra.Command, args []string) error {
	if err := d.parse(args); err != nil {
		return err
	}
	ctx := cmd.Context()
	st, err := d.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer st.Close()
	var errs []error
	first := true
	for _, kind := range d.kinds {
		objects, err := d.objects(ctx, st, kind)
		errs = append(errs, err)
		for _, obj := range objects {
			if !first {
				fmt.Fprintln(cmd.OutOrStdout())
			}
			first = false
			p := newPage(cmd.OutOrStdout())
			errs = append(errs, d.describe(ctx, st, p, obj))
			p.Flush()
		}
	}
	if err := errors.Join(errs...); err != nil || !first {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "nothing found")
	return nil
}

func (d *describeCommand) describe(ctx context.Context, st store.Store, p *page, obj api.Object) error {
	p.field("Name", obj.GetName())
	if obj.GetNamespace() != "" {
		p.field("Namespace", obj.GetNamespace())
	}
	if created := obj.GetCreationTimestamp(); !created.IsZero() {
		p.field("Created", created.UTC().Format(time.RFC3339)+" ("+age(d.now(), created)+" ago)")
	}
	p.list("Labels", keyValues(obj.GetLabels()))
	p.list("Annotations", keyValues(obj.GetAnnotations()))
	switch o := obj.(type) {
	case *networkingv1.NetworkPolicy:
		return describePolicy(ctx, st, p, o)
	case *corev1.Service:
		return describeService(ctx, st, p, o)
	case *api.WorkloadEndpoint:
		return describePod(ctx, st, p, o)
	case *corev1.Node:
		return d.describeNode(ctx, st, p, o)
	case *api.IPPool:
		return describePool(ctx, st, p, o)
	}
	return describeFields(p, obj)
}

// describeFields shows the fields of a kind that has no page of its own.
func describeFields(p *page, obj api.Object) error {
	text, err := yaml.Marshal(obj)
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := yaml.Unmarshal(text, &fields); err != nil {
		return err
	}
	maps.DeleteFunc(fields, func(name string, value any) bool {
		object, ok := value.(map[string]any)
		return name == "apiVersion" || name == "kind" || name == "metadata" || ok && len(object) == 0
	})
	if len(fields) == 0 {
		return nil
	}
	text, err = yaml.Marshal(fields)
	if err != nil {
		return err
	}
	p.line(strings.TrimRight(string(text), "\n"))
	return nil
}

func keyValues(m map[string]string) []string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, key+"="+m[key])
	}
	return out
}

// page is aligned "Name:  value" lines.
type page struct{ *tabwriter.Writer }

func newPage(w io.Writer) *page { return &page{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

func (p *page) field(name, value string) {
	fmt.Fprintf(p, "%s:\t%s\n", name, orNone(printable(value)))
}

// list is a field with one value a line.
func (p *page) list(name string, values []string) {
	if len(values) == 0 {
		p.field(name, "")
	}
	for i, value := range values {
		if i == 0 {
			p.field(name, value)
		} else {
			fmt.Fprintf(p, "\t%s\n", printable(value))
		}
	}
}

// line is text that is not aligned with the fields; it may be several lines.
func (p *page) line(text string) {
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Fprintln(p, printable(line))
	}
}

// rows is a table below a title.
func (p *page) rows(title string, t *table) {
	p.line(title + ":")
	if len(t.rows) == 0 {
		p.line("  " + none)
		return
	}
	var b strings.Builder
	t.print(&b)
	for line := range strings.Lines(b.String()) {
		p.line("  " + strings.TrimRight(line, "\n"))
	}
}
