package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// applyTries is how often an object is merged anew when others change it at the
// same time.
const applyTries = 10

type applyCommand struct {
	*Session
	files     []string
	namespace string
	dryRun    bool
	wait      waiting
}

func newApply(s *Session) *cobra.Command {
	a := &applyCommand{Session: s}
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIRECTORY|-",
		Short: "Create or change objects so that they are as a file says",
		Long: `Create or change objects so that they are as the files say.

Files are YAML or JSON with one or more documents; unknown fields and all other
mistakes are listed, with document and field. Everything is checked before the
first object is written: if anything is wrong, nothing changes.

The file is the whole of what you own: labels and fields that it no longer has
go away. What others own stays: status, addresses and node ports that were
given, labels and annotations of kubernetes.io and twill.io.

The command returns when the store has the objects; agents program them within
milliseconds. With --wait it returns when every node has them in its kernel, and
names the nodes that have not (exit code 1). Nodes without a living agent are
not waited for: they keep the rules that they have. What controllers derive from
an object, such as the endpoints of a Service, is not waited for either.`,
		Example: `  twill apply -f policy.yaml
  twill apply -f manifests/ -n shop
  twill apply -f policy.yaml --wait=10s
  twill get netpol web -o yaml | sed s/8080/8081/ | twill apply -f -`,
		Args: cobra.NoArgs,
		RunE: a.run,
	}
	cmd.Flags().StringArrayVarP(&a.files, "filename", "f", nil, "file, directory with .yaml, .yml and .json files, or - for standard input; may be repeated")
	cmd.Flags().StringVarP(&a.namespace, "namespace", "n", metav1.NamespaceDefault, "namespace of objects that name none")
	cmd.Flags().BoolVar(&a.dryRun, "dry-run", false, "check everything and say what would happen, and write nothing")
	a.wait.register(cmd, "the objects are in force")
	return cmd
}

func (a *applyCommand) run(cmd *cobra.Command, _ []string) error {
	if len(a.files) == 0 {
		return usagef("say what to apply: -f FILE, -f DIRECTORY or -f -")
	}
	objects, err := readManifests(cmd, a.files, a.namespace)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	st, err := a.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer st.Close()
	changes, err := planChanges(ctx, st, objects)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range changes {
		result := c.result()
		if !a.dryRun {
			result, err = c.write(ctx, st)
		}
		if err != nil {
			errs = append(errs, err)
			if errors.Is(err, store.ErrUnavailable) {
				break // nor will the rest be written
			}
			continue
		}
		if a.dryRun {
			result += " (dry run)"
		} else {
			a.wait.add(api.KindOf(c.desired), c.version)
		}
		fmt.Fprintln(cmd.OutOrStdout(), resource(c.desired), result)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return a.wait.await(ctx, a.Session, st, cmd.OutOrStdout())
}

// change is what is to be done with one object.
type change struct {
	desired api.Object // as the file has it
	stored  api.Object // nil: to be created
	merged  api.Object // what is written
	version uint64     // the resourceVersion that the store has after write
}

// planChanges compares the objects with the store, and lists everything that
// speaks against writing them.
func planChanges(ctx context.Context, st store.Store, objects []api.Object) ([]*change, error) {
	var changes []*change
	var errs []error
	for _, obj := range objects {
		c := &change{desired: obj}
		err := c.merge(ctx, st)
		if errors.Is(err, store.ErrUnavailable) {
			return nil, err
		}
		errs = append(errs, err)
		changes = append(changes, c)
	}
	namespaces, err := missingNamespaces(ctx, st, objects)
	errs = append(errs, namespaces...)
	if err != nil {
		return nil, err
	}
	pools, err := poolOverlaps(ctx, st, objects)
	errs = append(errs, pools...)
	if err != nil {
		return nil, err
	}
	used, err := poolsInUse(ctx, st, changes)
	errs = append(errs, used...)
	if err != nil {
		return nil, err
	}
	return changes, errors.Join(errs...)
}

// merge fetches what is stored and puts together what is to be.
func (c *change) merge(ctx context.Context, st store.Store) error {
	stored, err := st.Get(ctx, api.KindOf(c.desired), api.KeyOf(c.desired))
	if errors.Is(err, store.ErrNotFound) {
		c.stored, c.merged = nil, forCreation(c.desired)
		return nil
	}
	if err != nil {
		return err
	}
	if v := c.desired.GetResourceVersion(); v != "" && v != stored.GetResourceVersion() {
		return fmt.Errorf("%s: %w: the file has resourceVersion %s, the store %s; get it again, or take metadata.resourceVersion out of the file",
			resource(c.desired), store.ErrConflict, v, stored.GetResourceVersion())
	}
	c.stored, c.merged = stored, merge(c.desired, stored)
	var errs []error
	for _, e := range append(api.ValidateUpdate(c.merged, stored), api.Validate(c.merged)...) {
		errs = append(errs, fmt.Errorf("%s: %w", resource(c.desired), e))
	}
	return errors.Join(errs...)
}

func (c *change) result() string {
	switch {
	case c.stored == nil:
		return "created"
	case equality.Semantic.DeepEqual(c.merged, c.stored):
		return "unchanged"
	}
	return "configured"
}

// write writes the object; it merges again when somebody was faster.
func (c *change) write(ctx context.Context, st store.Store) (string, error) {
	for try := 1; ; try++ {
		result, now := c.result(), c.stored
		var err error
		switch result {
		case "created":
			now, err = st.Create(ctx, c.merged)
		case "configured":
			now, err = st.Update(ctx, c.merged)
		}
		if err == nil {
			c.version = api.VersionOf(now)
			return result, nil
		}
		overtaken := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrNotFound)
		if !overtaken || try == applyTries {
			return "", err
		}
		if err := c.merge(ctx, st); err != nil {
			return "", err
		}
	}
}

// missingNamespaces lists namespaces that are neither in the store nor among
// the objects: without them, no policy could select by namespace.
func missingNamespaces(ctx context.Context, st store.Store, objects []api.Object) ([]error, error) {
	known := map[string]bool{"": true}
	for _, obj := range objects {
		if api.KindOf(obj) == api.NamespaceKind {
			known[obj.GetName()] = true
		}
	}
	var missing []error
	for _, obj := range objects {
		name := obj.GetNamespace()
		if known[name] {
			continue
		}
		known[name] = true
		_, err := st.Get(ctx, api.NamespaceKind, api.Key{Name: name})
		if errors.Is(err, store.ErrNotFound) {
			missing = append(missing, fmt.Errorf(`%s: namespace %q does not exist: run "twill create namespace %s" first`, resource(obj), name, name))
		} else if err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// poolOverlaps lists pools of ours that share addresses with another.
func poolOverlaps(ctx context.Context, st store.Store, objects []api.Object) ([]error, error) {
	var pools []*api.IPPool
	for _, obj := range objects {
		if p, ok := obj.(*api.IPPool); ok {
			pools = append(pools, p)
		}
	}
	if len(pools) == 0 {
		return nil, nil
	}
	own := len(pools)
	stored, err := listOf[*api.IPPool](ctx, st, api.IPPoolKind, "")
	if err != nil {
		return nil, err
	}
	for _, p := range stored {
		if !slices.ContainsFunc(pools[:own], func(o *api.IPPool) bool { return o.Name == p.Name }) {
			pools = append(pools, p)
		}
	}
	overlaps := api.ValidatePools(pools)
	var errs []error
	for i, p := range pools[:own] {
		for _, e := range overlaps[i] {
			errs = append(errs, fmt.Errorf("%s: %w", resource(p), e))
		}
	}
	return errs, nil
}

// poolsInUse lists new pools that overlap addresses of nodes or Services, of the
// store or among the objects. A pool that is stored already may be changed, such as
// to disable it: its range can't.
func poolsInUse(ctx context.Context, st store.Store, changes []*change) ([]error, error) {
	var pools []*api.IPPool
	var nodes []*corev1.Node
	var services []*corev1.Service
	for _, c := range changes {
		switch o := c.desired.(type) {
		case *api.IPPool:
			if c.stored == nil {
				pools = append(pools, o)
			}
		case *corev1.Node:
			nodes = append(nodes, o)
		case *corev1.Service:
			services = append(services, o)
		}
	}
	if len(pools) == 0 {
		return nil, nil
	}
	storedNodes, err := listOf[*corev1.Node](ctx, st, api.NodeKind, "")
	if err != nil {
		return nil, err
	}
	storedServices, err := listOf[*corev1.Service](ctx, st, api.ServiceKind, "")
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range pools {
		for _, e := range api.ValidatePool(p, append(storedNodes, nodes...), append(storedServices, services...)) {
			errs = append(errs, fmt.Errorf("%s: %w", resource(p), e))
		}
	}
	return errs, nil
}

// ownedByOthers says whether a label or annotation is one that Kubernetes or
// Twill itself sets.
func ownedByOthers(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	if !ok {
		return false
	}
	for _, d := range []string{"kubernetes.io", api.GroupTwill} {
		if domain == d || strings.HasSuffix(domain, "."+d) {
			return true
		}
	}
	return false
}
