package controller

import (
	"context"
	"errors"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// affinityPrefix stands before the node's name in a block's affinity.
const affinityPrefix = "host:"

// clearNode deletes the endpoints and blocks of a node that is gone. Blocks go
// last: as long as one is there, a controller that starts anew knows that the
// work is not done.
func (r *reconciler) clearNode(ctx context.Context, name string) error {
	gone, err := r.nodeIsGone(ctx, name)
	if err != nil || !gone {
		return err
	}
	endpoints := 0
	if !r.orchestrated {
		endpoints, err = r.deleteAll(ctx, api.WorkloadEndpointKind, func(obj api.Object) bool {
			return obj.(*api.WorkloadEndpoint).Spec.Node == name
		})
	}
	if err != nil {
		return err
	}
	blocks, err := r.deleteAll(ctx, api.IPAMBlockKind, func(obj api.Object) bool {
		return obj.(*api.IPAMBlock).Spec.Affinity == affinityPrefix+name
	})
	if endpoints+blocks > 0 {
		r.log.Info("cleared away what a deleted node left", "node", name, "endpoints", endpoints, "blocks", blocks)
	}
	return err
}

// nodeIsGone asks the store itself: what a watch said may be history.
func (r *reconciler) nodeIsGone(ctx context.Context, name string) (bool, error) {
	_, err := r.store.Get(ctx, api.NodeKind, api.Key{Name: name})
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	return false, err
}

// deleteAll deletes the objects that match, in the version that matched.
func (r *reconciler) deleteAll(ctx context.Context, kind *api.Kind, match func(api.Object) bool) (deleted int, err error) {
	list, err := r.store.List(ctx, kind, "")
	if err != nil {
		return 0, err
	}
	for _, obj := range list.Items {
		if !match(obj) {
			continue
		}
		err := r.store.Delete(ctx, kind, api.KeyOf(obj), obj.GetResourceVersion())
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return deleted, err
		}
		deleted++
	}
	return deleted, nil
}

// sweepNodes queues the nodes that went while no controller acted: the owners
// of blocks that have no Node.
func (r *reconciler) sweepNodes(ctx context.Context) {
	for delay := firstRetry; ctx.Err() == nil; delay = min(2*delay, lastRetry) {
		blocks, err := r.store.List(ctx, api.IPAMBlockKind, "")
		if err != nil {
			wait(ctx, delay)
			continue
		}
		for _, obj := range blocks.Items {
			name, ok := strings.CutPrefix(obj.(*api.IPAMBlock).Spec.Affinity, affinityPrefix)
			if ok && store.CheckKey(api.NodeKind, api.Key{Name: name}) == nil {
				r.queue.add(item{api.NodeKind, api.Key{Name: name}})
			}
		}
		return
	}
}
