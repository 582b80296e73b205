package controller

import (
	"context"
	"errors"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// makePools makes the pools of a new cluster. Where there is one of the family,
// somebody has decided already, and ours would only be in the way.
func (r *reconciler) makePools(ctx context.Context) {
	for delay := firstRetry; ctx.Err() == nil; delay = min(2*delay, lastRetry) {
		err := r.tryPools(ctx)
		if err == nil {
			return
		}
		if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrExists) {
			r.log.Error("a pool of pod addresses can't be made, will be tried again", "error", err)
		}
		wait(ctx, delay)
	}
}

func (r *reconciler) tryPools(ctx context.Context) error {
	if len(r.podCIDRs) == 0 {
		return nil
	}
	pools, err := r.store.List(ctx, api.IPPoolKind, "")
	if err != nil {
		return err
	}
	has := map[bool]bool{} // by whether it is IPv4
	for _, obj := range pools.Items {
		if prefix, err := netip.ParsePrefix(obj.(*api.IPPool).Spec.CIDR); err == nil {
			has[prefix.Addr().Is4()] = true
		}
	}
	for _, prefix := range r.podCIDRs {
		if has[prefix.Addr().Is4()] {
			continue
		}
		pool := api.IPPoolKind.New().(*api.IPPool)
		pool.Name = "default-ipv6"
		if prefix.Addr().Is4() {
			pool.Name = "default-ipv4"
		}
		pool.Spec = api.IPPoolSpec{CIDR: prefix.String(), NATOutgoing: true}
		api.Default(pool)
		if errs := api.Validate(pool); len(errs) > 0 {
			return errs.ToAggregate()
		}
		if err := r.inUse(ctx, pool); err != nil {
			return err
		}
		if _, err := r.store.Create(ctx, pool); err != nil {
			return err
		}
		r.log.Info("made a pool of pod addresses", "pool", pool.Name, "cidr", prefix)
	}
	return nil
}

// inUse is why a range can't be that of pods: nodes or Services are in it.
func (r *reconciler) inUse(ctx context.Context, pool *api.IPPool) error {
	var nodes []*corev1.Node
	var services []*corev1.Service
	for _, kind := range []*api.Kind{api.NodeKind, api.ServiceKind} {
		list, err := r.store.List(ctx, kind, "")
		if err != nil {
			return err
		}
		for _, obj := range list.Items {
			switch o := obj.(type) {
			case *corev1.Node:
				nodes = append(nodes, o)
			case *corev1.Service:
				services = append(services, o)
			}
		}
	}
	return api.ValidatePool(pool, nodes, services).ToAggregate()
}
