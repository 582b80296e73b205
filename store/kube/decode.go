package kube

import (
	"fmt"

	json "github.com/go-json-experiment/json/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
)

// decode reads one object as the API server writes it. It returns nil for a pod
// that is no endpoint.
func decode(kind *api.Kind, raw []byte) (api.Object, error) {
	if kind == api.WorkloadEndpointKind {
		return decodePod(raw)
	}
	obj := kind.New()
	want := obj.GetObjectKind().GroupVersionKind()
	if err := json.Unmarshal(raw, obj); err != nil {
		return nil, fmt.Errorf("not a %s: %w", kind.Name, err)
	}
	// Items of a list need not say what the list says.
	if got := obj.GetObjectKind().GroupVersionKind(); got != want {
		return nil, fmt.Errorf("apiVersion and kind are %q %q, not %q %q", got.GroupVersion(), got.Kind, want.GroupVersion(), want.Kind)
	}
	trim(obj)
	if custom(kind) {
		// Some defaults depend on other fields, which a schema can't say.
		api.Default(obj)
	}
	return obj, nil
}

// custom says whether the kind is a custom resource.
func custom(kind *api.Kind) bool {
	return kind.Group == api.GroupCalico || kind.Group == api.GroupTwill
}

// trim drops what nobody reads and what is often more than all the rest.
func trim(obj api.Object) {
	obj.SetManagedFields(nil)
	annotations := obj.GetAnnotations()
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	if len(annotations) == 0 {
		obj.SetAnnotations(nil)
	}
	if node, ok := obj.(*corev1.Node); ok {
		node.Status.Images = nil
		node.Status.VolumesInUse = nil
		node.Status.VolumesAttached = nil
		node.Status.Config = nil
		node.Status.Features = nil
		node.Status.RuntimeHandlers = nil
	}
}

// keyOf is the key of an object as far as that can be read.
func keyOf(raw []byte) api.Key {
	var o struct {
		Metadata struct{ Namespace, Name string }
	}
	_ = json.Unmarshal(raw, &o) // the API server answers with objects
	return api.Key{Namespace: o.Metadata.Namespace, Name: o.Metadata.Name}
}

// pod is what becomes of a Pod: only these fields are ever decoded.
type pod struct {
	Metadata struct {
		Name              string            `json:"name"`
		Namespace         string            `json:"namespace"`
		UID               string            `json:"uid"`
		ResourceVersion   string            `json:"resourceVersion"`
		CreationTimestamp metav1.Time       `json:"creationTimestamp"`
		Labels            map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		NodeName       string      `json:"nodeName"`
		HostNetwork    bool        `json:"hostNetwork"`
		Containers     []container `json:"containers"`
		InitContainers []container `json:"initContainers"`
	} `json:"spec"`
	Status struct {
		Phase  corev1.PodPhase `json:"phase"`
		PodIP  string          `json:"podIP"`
		PodIPs []corev1.PodIP  `json:"podIPs"`
	} `json:"status"`
}

type container struct {
	Ports         []corev1.ContainerPort         `json:"ports"`
	RestartPolicy *corev1.ContainerRestartPolicy `json:"restartPolicy"`
}
