package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

type deleteCommand struct {
	*Session
	selection
	files          []string
	every          bool
	ignoreNotFound bool
	wait           waiting
	gone           *deletions // nil: not waited for
}

func newDelete(s *Session) *cobra.Command {
	d := &deleteCommand{Session: s}
	cmd := &cobra.Command{
		Use:   "delete KIND NAME... | -f FILE | KIND -l SELECTOR | KIND --all",
		Short: "Delete objects",
		Long: `Delete objects by name, by label, all of a kind, or those in files.

Deleting a namespace deletes the services, endpoint slices and policies in it.
It is refused while there are pods: pods come and go with their containers.`,
		Example: `  twill delete netpol access-nginx -n policy-demo
  twill delete -f policy.yaml
  twill delete services -n shop -l app=web`,
		RunE: d.run,
	}
	d.selection.register(cmd, s)
	cmd.Flags().StringArrayVarP(&d.files, "filename", "f", nil, "file or directory with the objects, or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&d.every, "all", false, "all objects of the kind in the namespace")
	cmd.Flags().BoolVar(&d.ignoreNotFound, "ignore-not-found", false, "it is no error if an object is not there")
	d.wait.register(cmd, "the deletions are in force")
	return cmd
}

func (d *deleteCommand) run(cmd *cobra.Command, args []string) error {
	var fromFiles []api.Object
	if len(d.files) > 0 {
		if len(args) > 0 || d.selector != "" || d.every || d.all {
			return usagef("-f excludes arguments, --selector, --all and --all-namespaces")
		}
		objects, err := readManifests(cmd, d.files, d.namespace)
		if err != nil {
			return err
		}
		fromFiles = objects
		slices.Reverse(fromFiles) // what others refer to goes last
	} else if err := d.parse(args); err != nil {
		return err
	} else if len(d.names) == 0 && d.selector == "" && !d.every {
		return usagef("say which: names, -l SELECTOR or --all")
	}
	ctx := cmd.Context()
	st, err := d.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer st.Close()
	objects, err := d.toDelete(ctx, st, fromFiles)
	errs := []error{err}
	if d.wait.timeout > 0 {
		if d.gone, err = newDeletions(ctx, st, kindsIn(objects)); err != nil {
			return err
		}
	}
	for _, obj := range objects {
		err := d.deleteOne(cmd, st, obj)
		errs = append(errs, err)
		if errors.Is(err, store.ErrUnavailable) {
			break
		}
	}
	if err := errors.Join(errs...); err != nil || d.gone == nil {
		return err
	}
	if err := d.gone.find(ctx, st, &d.wait); err != nil {
		return err
	}
	return d.wait.await(ctx, d.Session, st, cmd.OutOrStdout())
}

// kindsIn are the kinds of which a deletion of the objects deletes some.
func kindsIn(objects []api.Object) []*api.Kind {
	var kinds []*api.Kind
	for _, kind := range api.Kinds() {
		if slices.ContainsFunc(objects, func(obj api.Object) bool {
			return api.KindOf(obj) == kind || api.KindOf(obj) == api.NamespaceKind && kind.Namespaced
		}) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

func (d *deleteCommand) toDelete(ctx context.Context, st store.Store, fromFiles []api.Object) ([]api.Object, error) {
	if fromFiles != nil {
		return fromFiles, nil
	}
	var all []api.Object
	var errs []error
	for _, kind := range d.kinds {
		for _, name := range d.names[kind] {
			obj := kind.New()
			obj.SetName(name)
			obj.SetNamespace(d.in(kind))
			all = append(all, obj)
		}
		if len(d.names[kind]) > 0 {
			continue
		}
		objects, err := d.objects(ctx, st, kind)
		all, errs = append(all, objects...), append(errs, err)
	}
	return all, errors.Join(errs...)
}

func (d *deleteCommand) deleteOne(cmd *cobra.Command, st store.Store, obj api.Object) error {
	ctx, kind := cmd.Context(), api.KindOf(obj)
	if kind == api.NamespaceKind {
		if err := d.emptyNamespace(cmd, st, obj.GetName()); err != nil {
			return err
		}
	}
	if kind == api.IPPoolKind {
		if err := poolUnused(ctx, st, obj.GetName()); err != nil {
			return err
		}
	}
	err := st.Delete(ctx, kind, api.KeyOf(obj), "")
	switch {
	case errors.Is(err, store.ErrNotFound) && d.ignoreNotFound:
		return nil
	case err != nil:
		return shortened("delete "+resource(obj), err)
	}
	d.gone.add(kind, api.KeyOf(obj))
	_, err = fmt.Fprintln(cmd.OutOrStdout(), resource(obj), "deleted")
	return err
}

// poolUnused refuses to delete a pool that pods have addresses of: without it
// they would count as outside of the cluster, and be masqueraded.
func poolUnused(ctx context.Context, st store.Store, name string) error {
	obj, err := st.Get(ctx, api.IPPoolKind, api.Key{Name: name})
	if errors.Is(err, store.ErrNotFound) {
		return nil // the deletion says so
	}
	if err != nil {
		return err
	}
	cidr, err := netip.ParsePrefix(obj.(*api.IPPool).Spec.CIDR)
	if err != nil {
		return nil // nobody can have an address of it
	}
	pods, err := listOf[*api.WorkloadEndpoint](ctx, st, api.WorkloadEndpointKind, "")
	if err != nil {
		return err
	}
	used := 0
	for _, w := range pods {
		for _, text := range w.Spec.IPNetworks {
			if p, err := netip.ParsePrefix(text); err == nil && cidr.Contains(p.Addr()) {
				used++
			}
		}
	}
	if used > 0 {
		return fmt.Errorf("delete ippool/%s: %s its addresses: set spec.disabled, stop them, then delete it", name, map[bool]string{true: "a pod has", false: fmt.Sprintf("%d pods have", used)}[used == 1])
	}
	return nil
}

// emptyNamespace deletes what is in a namespace, so that nothing is left that
// nobody can see; a later namespace of the same name starts empty.
func (d *deleteCommand) emptyNamespace(cmd *cobra.Command, st store.Store, name string) error {
	ctx := cmd.Context()
	pods, err := st.List(ctx, api.WorkloadEndpointKind, name)
	if err != nil {
		return err
	}
	if n := len(pods.Items) + len(pods.Unreadable); n > 0 {
		return fmt.Errorf("delete namespace/%s: %d pods run in it: stop them first", name, n)
	}
	kinds := slices.Clone(api.Kinds())
	slices.Reverse(kinds)
	for _, kind := range kinds {
		if !kind.Namespaced {
			continue
		}
		list, err := st.List(ctx, kind, name)
		if err != nil {
			return err
		}
		keys := list.Unreadable
		for _, obj := range list.Items {
			keys = append(keys, api.KeyOf(obj))
		}
		for _, key := range keys {
			obj := kind.New()
			obj.SetName(key.Name)
			if err := st.Delete(ctx, kind, key, ""); err != nil && !errors.Is(err, store.ErrNotFound) {
				return shortened("delete "+resource(obj), err)
			} else if err == nil {
				d.gone.add(kind, key)
			}
			fmt.Fprintln(cmd.OutOrStdout(), resource(obj), "deleted")
		}
	}
	return nil
}
