// Package deploy holds what a Kubernetes cluster needs to run Twill: the
// definitions of the custom resources, which are generated from the types of
// package api, and twill.yaml with all else. The Helm chart beside it makes the
// same objects.
package deploy

import (
	"embed"
	"io/fs"
)

//go:generate go run ../hack/crds -dir crds

//go:embed crds/*.yaml
var files embed.FS

//go:embed twill.yaml
var manifest []byte

// Manifest is twill.yaml.
func Manifest() []byte { return manifest }

// CustomResources are the manifests of the CustomResourceDefinitions, one a
// kind, in the order of their file names.
func CustomResources() ([][]byte, error) {
	names, err := fs.Glob(files, "crds/*.yaml")
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	return out, nil
}
