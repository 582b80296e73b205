package kube

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/twill-net/twill/api"
)

// patch is one request of an update.
type patch struct {
	contentType types.PatchType
	subresource string // "" or "/status"
	fields      map[string]any
	shared      bool // the object has other writers, of other fields
}

// encode is the patch for an object of this version. Where the object is shared
// the version is left out: the kubelet's writes are no conflict with ours, and
// each field that is in the patch has one writer.
func (p patch) encode(resourceVersion string) ([]byte, error) {
	fields := maps.Clone(p.fields)
	if !p.shared {
		meta, _ := fields["metadata"].(map[string]any)
		meta = maps.Clone(meta)
		if meta == nil {
			meta = map[string]any{}
		}
		meta["resourceVersion"] = resourceVersion
		fields["metadata"] = meta
	}
	return json.Marshal(fields)
}

// withStatus are the kinds whose status is written apart from the rest.
var withStatus = []*api.Kind{api.NamespaceKind, api.NodeKind, api.ServiceKind}

// serverFields are those of metadata that the API server alone writes.
var serverFields = []string{"uid", "creationTimestamp", "generation", "resourceVersion", "managedFields", "deletionTimestamp", "deletionGracePeriodSeconds"}

// patchesOf are what makes an object that is as old one that is as next.
func patchesOf(kind *api.Kind, old, next api.Object) ([]patch, error) {
	was, err := fieldsOf(old)
	if err != nil {
		return nil, err
	}
	is, err := fieldsOf(next)
	if err != nil {
		return nil, err
	}
	shared := kind == api.NodeKind
	var status map[string]any
	if slices.Contains(withStatus, kind) {
		status = difference(statusOf(was), statusOf(is))
		delete(was, "status")
		delete(is, "status")
	}
	var out []patch
	if main := difference(was, is); len(main) > 0 {
		out = append(out, patch{types.MergePatchType, "", main, shared})
	}
	if len(status) == 0 {
		return out, nil
	}
	p := patch{types.MergePatchType, "/status", map[string]any{"status": status}, shared}
	if kind == api.NodeKind {
		// Conditions are merged by their type: the others are the kubelet's.
		p.contentType = types.StrategicMergePatchType
		delete(status, "addresses") // so are these
		delete(status, "conditions")
		if conditions := conditionPatch(old.(*corev1.Node), next.(*corev1.Node)); len(conditions) > 0 {
			status["conditions"] = conditions
		}
		if len(status) == 0 {
			return out, nil
		}
	}
	return append(out, p), nil
}

// conditionPatch lists the conditions that changed, and those that are gone with
// the directive to delete them.
func conditionPatch(old, next *corev1.Node) []any {
	was := map[corev1.NodeConditionType]corev1.NodeCondition{}
	for _, c := range old.Status.Conditions {
		was[c.Type] = c
	}
	var out []any
	for _, c := range next.Status.Conditions {
		if before, ok := was[c.Type]; !ok || !reflect.DeepEqual(before, c) {
			out = append(out, c)
		}
		delete(was, c.Type)
	}
	for _, t := range slices.Sorted(maps.Keys(was)) {
		out = append(out, map[string]any{"type": t, "$patch": "delete"})
	}
	return out
}

// fieldsOf is an object as JSON, without what the API server alone writes.
func fieldsOf(obj api.Object) (map[string]any, error) {
	raw, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	delete(fields, "apiVersion")
	delete(fields, "kind")
	if meta, ok := fields["metadata"].(map[string]any); ok {
		for _, name := range serverFields {
			delete(meta, name)
		}
	}
	return fields, nil
}

func statusOf(fields map[string]any) map[string]any {
	status, _ := fields["status"].(map[string]any)
	return status
}

// difference is the merge patch (RFC 7386) that makes one object another.
func difference(from, to map[string]any) map[string]any {
	out := map[string]any{}
	for name := range from {
		if _, ok := to[name]; !ok {
			out[name] = nil
		}
	}
	for name, value := range to {
		before, had := from[name]
		inner, isObject := value.(map[string]any)
		beforeInner, wasObject := before.(map[string]any)
		switch {
		case isObject && wasObject:
			if d := difference(beforeInner, inner); len(d) > 0 {
				out[name] = d
			}
		case !had || !reflect.DeepEqual(before, value):
			out[name] = value
		}
	}
	return out
}
