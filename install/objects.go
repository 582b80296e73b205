package install

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/deploy"
)

// Options say what is to be installed otherwise than deploy has it.
type Options struct {
	PodCIDRs []netip.Prefix    // none: as detected
	Image    string            // empty: that of deploy
	Settings map[string]string // of agents
}

// objects are those of package deploy, definitions of custom resources first.
func objects() ([]*unstructured.Unstructured, error) {
	manifests, err := deploy.CustomResources()
	if err != nil {
		return nil, err
	}
	var all []*unstructured.Unstructured
	for _, manifest := range append(manifests, deploy.Manifest()) {
		for _, document := range bytes.Split(manifest, []byte("\n---\n")) {
			o := &unstructured.Unstructured{}
			if err := yaml.Unmarshal(document, &o.Object); err != nil {
				return nil, err
			}
			if plurals[o.GetKind()] == "" {
				return nil, fmt.Errorf("nobody knows where a %s is kept", o.GetKind())
			}
			all = append(all, o)
		}
	}
	return all, nil
}

// Objects are what is installed, in that order.
func Objects(o Options) ([]*unstructured.Unstructured, error) {
	all, err := objects()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, object := range all {
		switch object.GetKind() {
		case "ConfigMap":
			ranges := make([]string, len(o.PodCIDRs))
			for i, p := range o.PodCIDRs {
				ranges[i] = p.String()
			}
			if len(ranges) > 0 {
				errs = append(errs, unstructured.SetNestedField(object.Object, strings.Join(ranges, ","), "data", "POD_CIDR"))
			}
			for name, value := range o.Settings {
				errs = append(errs, unstructured.SetNestedField(object.Object, value, "data", name))
			}
		case "DaemonSet", "Deployment":
			if o.Image != "" {
				errs = append(errs, setImage(object, o.Image))
			}
		}
	}
	return all, errors.Join(errs...)
}

var containers = []string{"spec", "template", "spec", "containers"}

func setImage(o *unstructured.Unstructured, image string) error {
	list, _, err := unstructured.NestedSlice(o.Object, containers...)
	if err != nil {
		return err
	}
	for _, c := range list {
		c.(map[string]any)["image"] = image
	}
	return unstructured.SetNestedSlice(o.Object, list, containers...)
}
