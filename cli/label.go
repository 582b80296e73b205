package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

type labelCommand struct {
	*Session
	selection
	overwrite bool
	every     bool
}

func newLabel(s *Session) *cobra.Command {
	l := &labelCommand{Session: s}
	cmd := &cobra.Command{
		Use:   "label KIND NAME... KEY=VALUE... KEY-...",
		Short: "Set and remove labels",
		Long: `Set labels with KEY=VALUE and remove them with KEY-.

A label that has another value is only changed with --overwrite.`,
		Example: `  twill label node node01 zone=a
  twill label ns shop team=web --overwrite
  twill label pods -l app=web -n shop canary-`,
		RunE: l.run,
	}
	l.selection.register(cmd, s)
	cmd.Flags().BoolVar(&l.overwrite, "overwrite", false, "change labels that have another value")
	cmd.Flags().BoolVar(&l.every, "all", false, "all objects of the kind in the namespace")
	return cmd
}

func (l *labelCommand) run(cmd *cobra.Command, args []string) error {
	objects, set, remove, err := splitLabels(args)
	if err != nil {
		return err
	}
	if err := l.parse(objects); err != nil {
		return err
	}
	if len(l.names) == 0 && l.selector == "" && !l.every {
		return usagef("say which: names, -l SELECTOR or --all")
	}
	st, err := l.OpenStore(cmd.Context())
	if err != nil {
		return err
	}
	defer st.Close()
	var errs []error
	for _, kind := range l.kinds {
		found, err := l.objects(cmd.Context(), st, kind)
		errs = append(errs, err)
		for _, obj := range found {
			result, err := l.relabel(cmd.Context(), st, obj, set, remove)
			if err != nil {
				errs = append(errs, fmt.Errorf("label %s: %w", resource(obj), err))
				continue
			}
			fmt.Fprintln(cmd.OutOrStdout(), resource(obj), result)
		}
	}
	return errors.Join(errs...)
}

// splitLabels parts kinds and names from KEY=VALUE and KEY-. The name of no
// object has = in it or ends with -.
func splitLabels(args []string) (objects []string, set map[string]string, remove []string, err error) {
	set = map[string]string{}
	for _, arg := range args {
		key, value, isSet := strings.Cut(arg, "=")
		isRemove := false
		if !isSet {
			key, isRemove = strings.CutSuffix(arg, "-")
		}
		switch {
		case isSet:
			set[key] = value
		case isRemove:
			remove = append(remove, key)
		default:
			objects = append(objects, arg)
			continue
		}
		problems := validation.IsQualifiedName(key)
		if len(problems) == 0 && isSet {
			problems = validation.IsValidLabelValue(value)
		}
		if len(problems) > 0 {
			return nil, nil, nil, usagef("%q: %s", arg, strings.Join(problems, "; "))
		}
	}
	for _, key := range remove {
		if _, both := set[key]; both {
			return nil, nil, nil, usagef("label %s can't be both set and removed", key)
		}
	}
	if len(set)+len(remove) == 0 {
		return nil, nil, nil, usagef("say which labels: KEY=VALUE to set, KEY- to remove")
	}
	return objects, set, remove, nil
}

// relabel changes one object; it starts over when somebody was faster.
func (l *labelCommand) relabel(ctx context.Context, st store.Store, obj api.Object, set map[string]string, remove []string) (string, error) {
	for try := 1; ; try++ {
		changed := obj.DeepCopyObject().(api.Object)
		labels := maps.Clone(obj.GetLabels())
		if labels == nil {
			labels = map[string]string{}
		}
		for _, key := range slices.Sorted(maps.Keys(set)) {
			if old, ok := labels[key]; ok && old != set[key] && !l.overwrite {
				return "", fmt.Errorf("%s is %q already: use --overwrite to change it", key, old)
			}
			labels[key] = set[key]
		}
		for _, key := range remove {
			delete(labels, key)
		}
		if maps.Equal(labels, obj.GetLabels()) {
			return "not changed", nil
		}
		changed.SetLabels(labels)
		if errs := api.Validate(changed); len(errs) > 0 {
			return "", errs.ToAggregate()
		}
		_, err := st.Update(ctx, changed)
		if err == nil {
			return "labelled", nil
		}
		if !errors.Is(err, store.ErrConflict) || try == applyTries {
			return "", err
		}
		if obj, err = st.Get(ctx, api.KindOf(obj), api.KeyOf(obj)); err != nil {
			return "", err
		}
	}
}
