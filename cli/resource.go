package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// selection is which objects a command is about: kinds and names as arguments,
// namespace and labels as flags.
type selection struct {
	namespace string
	all       bool // of all namespaces
	selector  string

	kinds []*api.Kind
	names map[*api.Kind][]string // none: all that the selector selects
}

func (sel *selection) register(cmd *cobra.Command, s *Session) {
	cmd.Flags().StringVarP(&sel.namespace, "namespace", "n", metav1.NamespaceDefault, "namespace of the objects")
	cmd.Flags().BoolVarP(&sel.all, "all-namespaces", "A", false, "objects of every namespace")
	cmd.Flags().StringVarP(&sel.selector, "selector", "l", "", `only objects with these labels, such as "app=web,tier!=db"`)
	cmd.ValidArgsFunction = s.completeObjects(sel)
}

// parse reads the arguments: KIND[,KIND…] [NAME…], or KIND/NAME….
func (sel *selection) parse(args []string) error {
	sel.names = map[*api.Kind][]string{}
	if len(args) == 0 {
		return usagef("say of what kind: %s", strings.Join(kindWords(), ", "))
	}
	if strings.Contains(args[0], "/") {
		for _, arg := range args {
			word, name, ok := strings.Cut(arg, "/")
			if !ok || name == "" {
				return usagef("%q: either every argument is KIND/NAME or none", arg)
			}
			kind, err := sel.add(word)
			if err != nil {
				return err
			}
			sel.names[kind] = append(sel.names[kind], name)
		}
		return sel.check()
	}
	for _, word := range strings.Split(args[0], ",") {
		if _, err := sel.add(word); err != nil {
			return err
		}
	}
	for _, name := range args[1:] {
		if strings.Contains(name, "/") {
			return usagef("%q: either every argument is KIND/NAME or none", name)
		}
		for _, kind := range sel.kinds {
			sel.names[kind] = append(sel.names[kind], name)
		}
	}
	return sel.check()
}

func (sel *selection) add(word string) (*api.Kind, error) {
	kind := lookupKind(word)
	if kind == nil {
		return nil, usagef("unknown kind %q; there are %s", word, strings.Join(kindWords(), ", "))
	}
	if !slices.Contains(sel.kinds, kind) {
		sel.kinds = append(sel.kinds, kind)
	}
	return kind, nil
}

func (sel *selection) check() error {
	named := len(sel.names) > 0
	switch {
	case named && sel.selector != "":
		return usagef("a name and --selector exclude each other")
	case named && sel.all:
		return usagef("a name and --all-namespaces exclude each other: give the namespace with -n")
	}
	if _, err := labels.Parse(sel.selector); err != nil {
		return usagef("--selector %q: %v", sel.selector, err)
	}
	return nil
}

// lookupKind also knows the form that we print, such as
// networkpolicy.networking.k8s.io.
func lookupKind(word string) *api.Kind {
	if kind := api.LookupKind(word); kind != nil {
		return kind
	}
	name, group, _ := strings.Cut(word, ".")
	if kind := api.LookupKind(name); kind != nil && kind.Group == group {
		return kind
	}
	return nil
}

// plural is a kind as people call it.
func plural(kind *api.Kind) string {
	if kind == api.WorkloadEndpointKind {
		return "pods"
	}
	return kind.Plural
}

func kindWords() []string {
	var words []string
	for _, k := range api.Kinds() {
		words = append(words, plural(k))
	}
	return words
}

// resource names an object as kubectl does: kind, group, name.
func resource(obj api.Object) string {
	kind := api.KindOf(obj)
	name := strings.ToLower(kind.Name)
	if kind.Group != "" {
		name += "." + kind.Group
	}
	return name + "/" + printable(obj.GetName())
}

// in returns the namespace to look into for objects of a kind; empty for kinds
// without one, and for all.
func (sel *selection) in(kind *api.Kind) string {
	if !kind.Namespaced || sel.all {
		return ""
	}
	return sel.namespace
}

// objects fetches what is selected of one kind, sorted by key. Objects that
// exist and can't be read are an error beside the others.
func (sel *selection) objects(ctx context.Context, st store.Store, kind *api.Kind) ([]api.Object, error) {
	if names := sel.names[kind]; len(names) > 0 {
		return getEach(ctx, st, kind, sel.in(kind), names)
	}
	list, err := st.List(ctx, kind, sel.in(kind))
	if err != nil {
		return nil, err
	}
	match, err := labels.Parse(sel.selector)
	if err != nil {
		return nil, err
	}
	var selected []api.Object
	for _, obj := range list.Items {
		if match.Matches(labels.Set(obj.GetLabels())) {
			selected = append(selected, obj)
		}
	}
	sortByKey(selected)
	var errs []error
	for _, key := range list.Unreadable {
		errs = append(errs, fmt.Errorf("%s %s is in the store and can't be read: what is stored is no %s", kind.Name, key, kind.Name))
	}
	return selected, errors.Join(errs...)
}

func getEach(ctx context.Context, st store.Store, kind *api.Kind, namespace string, names []string) ([]api.Object, error) {
	var found []api.Object
	var errs []error
	for _, name := range names {
		obj, err := getOne(ctx, st, kind, api.Key{Namespace: namespace, Name: name})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, obj)
	}
	return found, errors.Join(errs...)
}

func getOne(ctx context.Context, st store.Store, kind *api.Kind, key api.Key) (api.Object, error) {
	obj, err := st.Get(ctx, kind, key)
	switch {
	case errors.Is(err, store.ErrNotFound) && kind.Namespaced:
		return nil, fmt.Errorf("%s %q: %w in namespace %q", plural(kind), key.Name, store.ErrNotFound, key.Namespace)
	case errors.Is(err, store.ErrNotFound):
		return nil, fmt.Errorf("%s %q: %w", plural(kind), key.Name, store.ErrNotFound)
	case err != nil:
		return nil, err
	}
	return obj, nil
}

func sortByKey(objects []api.Object) {
	slices.SortFunc(objects, func(a, b api.Object) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
}

// listOf lists one kind with its own type, sorted by key.
func listOf[T api.Object](ctx context.Context, st store.Store, kind *api.Kind, namespace string) ([]T, error) {
	list, err := st.List(ctx, kind, namespace)
	if err != nil {
		return nil, err
	}
	items := slices.Clone(list.Items)
	sortByKey(items)
	var out []T
	for _, obj := range items {
		out = append(out, obj.(T))
	}
	return out, nil
}
