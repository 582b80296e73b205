package controller

import (
	"context"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// expectedNamespaces are those that manifests take for granted.
var expectedNamespaces = []string{metav1.NamespaceDefault, metav1.NamespaceSystem}

// reconcileNamespace creates the namespaces that must be, and gives each the
// label with its name by which policies select it.
func (r *reconciler) reconcileNamespace(ctx context.Context, key api.Key) error {
	obj, err := r.store.Get(ctx, api.NamespaceKind, key)
	if errors.Is(err, store.ErrNotFound) {
		if !slices.Contains(expectedNamespaces, key.Name) {
			return nil
		}
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: key.Name}}
		api.Default(ns)
		_, err = r.store.Create(ctx, ns)
		return err
	}
	if err != nil || obj.GetLabels()[corev1.LabelMetadataName] != "" {
		return err
	}
	api.Default(obj)
	_, err = r.store.Update(ctx, obj)
	return err
}
