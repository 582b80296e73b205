// Package install brings Twill into a Kubernetes cluster and takes it out again: it
// looks at the cluster, says what it would do and what is in the way, does it, and
// waits until it is done.
//
// What is installed is package deploy's; nodes are cleaned by pods that run
// `twill cleanup` there.
package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/kube"
)

const (
	namespace    = metav1.NamespaceSystem
	fieldManager = "twill"
	callTimeout  = 30 * time.Second
	pollInterval = 500 * time.Millisecond
)

// Cluster is a Kubernetes cluster.
type Cluster struct {
	client *rest.RESTClient
	server string
	tell   func(string)
}

// Open reads a kubeconfig. No request is made yet. tell is called with each thing
// that is done.
func Open(cluster kube.Config, tell func(string)) (*Cluster, error) {
	config, err := kube.RESTConfig(cluster)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	client, err := rest.UnversionedRESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return &Cluster{client, config.Host, tell}, nil
}

// do sends one request and decodes its answer, unless into is nil.
func (c *Cluster) do(ctx context.Context, request *rest.Request, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	result := request.Do(ctx)
	body, _ := result.Raw()
	if err := result.Error(); err != nil {
		var status apierrors.APIStatus
		if !errors.As(err, &status) {
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		return err
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// get tells whether there is an object, and reads it.
func (c *Cluster) get(ctx context.Context, path string, into any) (found bool, err error) {
	err = c.do(ctx, c.client.Get().AbsPath(path), into)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get %s: %w", path, err)
	}
	return true, nil
}

func (c *Cluster) list(ctx context.Context, path, labels string, into any) error {
	request := c.client.Get().AbsPath(path)
	if labels != "" {
		request.Param("labelSelector", labels)
	}
	if err := c.do(ctx, request, into); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("list %s: %w", path, err)
	}
	return nil
}

// The ways in which apply changes an object.
const (
	creates = "create"
	updates = "update"
	keeps   = "keep"
)

// apply makes an object what is asked for, leaves what others have set of it, and
// says what that changed. A trial changes nothing.
func (c *Cluster) apply(ctx context.Context, o *unstructured.Unstructured, trial bool) (change string, err error) {
	body, err := o.MarshalJSON()
	if err != nil {
		return "", err
	}
	var before, after map[string]any
	found, err := c.get(ctx, pathOf(o), &before)
	if err != nil || trial && !found { // its definition may not be there yet
		return creates, err
	}
	request := c.client.Patch(types.ApplyPatchType).AbsPath(pathOf(o)).Param("fieldManager", fieldManager).Param("force", "true").Body(body)
	if trial {
		request.Param("dryRun", metav1.DryRunAll)
	}
	if err := c.do(ctx, request, &after); err != nil {
		return "", fmt.Errorf("apply %s: %w", nameOf(o), err)
	}
	switch {
	case !found:
		return creates, nil
	case reflect.DeepEqual(wanted(before), wanted(after)):
		return keeps, nil
	}
	return updates, nil
}

// wanted is an object without what the API server and controllers note on it.
func wanted(o map[string]any) map[string]any {
	delete(o, "status")
	for _, field := range []string{"managedFields", "resourceVersion", "generation"} {
		unstructured.RemoveNestedField(o, "metadata", field)
	}
	return o
}

func (c *Cluster) create(ctx context.Context, path string, o any) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return c.do(ctx, c.client.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(body), nil)
}

func (c *Cluster) patch(ctx context.Context, path string, kind types.PatchType, patch any) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	if err := c.do(ctx, c.client.Patch(kind).AbsPath(path).Body(body), nil); err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	return nil
}

// delete removes an object, and says whether it was there.
func (c *Cluster) delete(ctx context.Context, path string) (bool, error) {
	err := c.do(ctx, c.client.Delete().AbsPath(path).Param("propagationPolicy", string(metav1.DeletePropagationBackground)), nil)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete %s: %w", path, err)
	}
	return true, nil
}

// until asks again and again, until it is done, fails, or ctx ends.
func until(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil && !errors.Is(err, store.ErrUnavailable) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// plurals are the kinds of our manifests as paths name them.
var plurals = map[string]string{
	"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings", "ConfigMap": "configmaps",
	"CustomResourceDefinition": "customresourcedefinitions", "DaemonSet": "daemonsets", "Deployment": "deployments",
	"Pod": "pods", "Role": "roles", "RoleBinding": "rolebindings", "ServiceAccount": "serviceaccounts",
}

func pathOf(o *unstructured.Unstructured) string {
	path := "/apis/" + o.GetAPIVersion()
	if !strings.Contains(o.GetAPIVersion(), "/") {
		path = "/api/" + o.GetAPIVersion()
	}
	if o.GetNamespace() != "" {
		path += "/namespaces/" + o.GetNamespace()
	}
	return path + "/" + plurals[o.GetKind()] + "/" + o.GetName()
}

func nameOf(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}
