package cli

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/etcd"
)

// overtaking is a store in which somebody else changes every object just before
// the first write of it.
type overtaking struct {
	unclosed
	done map[api.Key]bool
}

func (o *overtaking) Update(ctx context.Context, obj api.Object) (api.Object, error) {
	if key := api.KeyOf(obj); !o.done[key] {
		o.done[key] = true
		other, err := o.Get(ctx, api.KindOf(obj), key)
		if err != nil {
			return nil, err
		}
		other.SetAnnotations(map[string]string{"twill.io/seen": "yes"})
		if _, err := o.unclosed.Update(ctx, other); err != nil {
			return nil, err
		}
	}
	return o.unclosed.Update(ctx, obj)
}

func (o *overtaking) Create(ctx context.Context, obj api.Object) (api.Object, error) {
	if _, err := o.unclosed.Create(ctx, obj); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("somebody was faster: %w", store.ErrExists)
}

// TestOvertaken: what others write at the same time is kept, and the command
// succeeds all the same.
func TestOvertaken(t *testing.T) {
	term := newTerminal()
	term.output(nil, "create", "namespace", "a")
	run := func(args ...string) string {
		t.Helper()
		var out strings.Builder
		s := term.session(nil)
		s.open = func(context.Context, etcd.Config) (store.Store, error) {
			return &overtaking{unclosed{term.store}, map[api.Key]bool{}}, nil
		}
		root := newRoot(s)
		root.SetIn(strings.NewReader("apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {x: z}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}"))
		run(t.Context(), root, args, &out, &out)
		return out.String()
	}
	if got, want := run("apply", "-f", "-"), "namespace/a configured\nnamespace/b unchanged\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := run("label", "ns", "a", "more=yes"), "namespace/a labelled\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := run("fabric", "set", "host-gw"), "preference: host-gw, vxlan\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	obj, err := term.store.Get(t.Context(), api.NamespaceKind, api.Key{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if obj.GetLabels()["x"] != "z" || obj.GetLabels()["more"] != "yes" || obj.GetAnnotations()["twill.io/seen"] != "yes" {
		t.Errorf("got labels %v, annotations %v", obj.GetLabels(), obj.GetAnnotations())
	}
}
