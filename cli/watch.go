package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// watcher shows what happens to the selected objects of one kind.
type watcher struct {
	*getCommand
	cmd     *cobra.Command
	store   store.Store
	kind    *api.Kind
	match   labels.Selector
	table   *table
	columns []column

	shown  map[api.Key]api.Object // what was shown and is not gone
	synced bool
	cancel context.CancelCauseFunc
}

// follow shows what there is and then every change, until the context ends.
func (g *getCommand) follow(cmd *cobra.Command, st store.Store) error {
	match, err := labels.Parse(g.selector)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(cmd.Context())
	defer cancel(nil)
	w := &watcher{getCommand: g, cmd: cmd, store: st, kind: g.kinds[0], match: match, shown: map[api.Key]api.Object{}, cancel: cancel}
	w.table, w.columns = g.newTable(w.kind)
	store.Follow(ctx, st, w.kind, store.Handler{Put: w.put, Deleted: w.deleted, Synced: w.sync, Connected: w.connected})
	if cmd.Context().Err() != nil {
		return nil // the user has seen enough
	}
	return context.Cause(ctx)
}

func (w *watcher) selects(obj api.Object) bool {
	names := w.names[w.kind]
	namespace := w.in(w.kind)
	return (namespace == "" || obj.GetNamespace() == namespace) &&
		(len(names) == 0 || slices.Contains(names, obj.GetName())) &&
		w.match.Matches(labels.Set(obj.GetLabels()))
}

func (w *watcher) put(obj api.Object) {
	key := api.KeyOf(obj)
	if !w.selects(obj) {
		w.deleted(key) // for us: it may have lost its label
		return
	}
	w.shown[key] = obj
	if w.synced {
		w.show(store.Put, obj)
	}
}

func (w *watcher) deleted(key api.Key) {
	obj, ok := w.shown[key]
	delete(w.shown, key)
	if ok && w.synced {
		w.show(store.Deleted, obj)
	}
}

// sync shows the first list, which came in no order, as one table.
func (w *watcher) sync() {
	var objects []api.Object
	for _, obj := range w.shown {
		objects = append(objects, obj)
	}
	sortByKey(objects)
	w.synced = true
	w.show(store.Put, objects...)
}

func (w *watcher) show(what store.EventType, objects ...api.Object) {
	out := w.cmd.OutOrStdout()
	switch w.output {
	case "name":
		for _, obj := range objects {
			if what == store.Deleted {
				fmt.Fprintln(out, resource(obj), "deleted")
				continue
			}
			fmt.Fprintln(out, resource(obj))
		}
	case "json", "yaml":
		for _, obj := range objects {
			event := map[string]any{"type": what, "object": obj}
			text, err := json.Marshal(event)
			if w.output == "yaml" {
				text, err = yaml.Marshal(event)
				text = append([]byte("---\n"), text...)
			} else {
				text = append(text, '\n')
			}
			if err != nil {
				w.cancel(err)
				return
			}
			out.Write(text)
		}
	default:
		w.showRows(what, objects)
	}
}

func (w *watcher) showRows(what store.EventType, objects []api.Object) {
	v, err := w.newView(w.cmd.Context(), w.store, w.kind)
	if err != nil {
		fmt.Fprintln(w.cmd.ErrOrStderr(), "warning:", err)
	}
	for _, obj := range objects {
		cells := w.cells(w.columns, v, obj)
		if what == store.Deleted {
			for i, c := range w.columns {
				if c.title == ageColumn.title {
					cells[i] = "<deleted>"
				}
			}
			if !slices.Contains(w.table.columns, ageColumn.title) {
				cells[len(cells)-1] = "<deleted>"
			}
		}
		w.table.add(cells...)
	}
	w.table.print(w.cmd.OutOrStdout())
}

// connected ends the command when the store can't be reached from the start;
// later it only says so, and Follow tries on.
func (w *watcher) connected(up bool, err error) {
	switch {
	case !up && !w.synced:
		w.cancel(err)
	case !up:
		fmt.Fprintf(w.cmd.ErrOrStderr(), "warning: watch %s: %v; trying on\n", plural(w.kind), err)
	case w.synced:
		fmt.Fprintln(w.cmd.ErrOrStderr(), "the store answers again")
	}
}
