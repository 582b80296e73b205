package main

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/deploy"
	"github.com/twill-net/twill/test/golden"
)

// mostBytes bounds all definitions together: client-side apply keeps a copy of
// each in an annotation of at most 256 KiB, and every client reads them.
const mostBytes = 100_000

func TestDefinitionsAreCurrent(t *testing.T) {
	if golden.Updating() {
		if err := write("../../deploy/crds"); err != nil {
			t.Fatal(err)
		}
	}
	want, err := definitions()
	if err != nil {
		t.Fatal(err)
	}
	have, err := deploy.CustomResources()
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, text := range have {
		size += len(text)
		var d struct {
			Spec struct {
				Group string
				Names struct{ Plural string }
			}
		}
		if err := yaml.Unmarshal(text, &d); err != nil {
			t.Fatal(err)
		}
		name := d.Spec.Group + "_" + d.Spec.Names.Plural + ".yaml"
		if !bytes.Equal(text, want[name]) && !golden.Updating() { // what is embedded was read before the update
			t.Errorf("%s is not what the types say; run go generate ./deploy: %s", name, cmp.Diff(string(text), string(want[name])))
		}
	}
	if len(have) != len(want) && !golden.Updating() {
		t.Errorf("%d files, want %d; run go generate ./deploy", len(have), len(want))
	}
	if size > mostBytes {
		t.Errorf("the definitions have %d bytes together, more than %d", size, mostBytes)
	}
}
