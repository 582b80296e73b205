package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/test/testlab"
)

// TestOneInterface: a second interface of a container is refused before anything
// changes, and what fails or ends leaves alone the endpoint of another attachment:
// of the same container, or of another container with the pod's name.
func TestOneInterface(t *testing.T) {
	l := newLifecycle(t)
	s, err := l.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sandboxOf := func(id string) *sandbox {
		t.Helper()
		made, err := newSandbox(id, "same")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(made.close)
		return made
	}
	published := func(want string) {
		t.Helper()
		testlab.Eventually(t, patience, func() error {
			obj, err := s.Get(t.Context(), api.WorkloadEndpointKind, api.Key{Namespace: "default", Name: "same"})
			if err != nil {
				return err
			}
			if spec := obj.(*api.WorkloadEndpoint).Spec; spec.ContainerID+"/"+spec.Endpoint != want {
				return fmt.Errorf("the endpoint is of %s/%s, want %s", spec.ContainerID, spec.Endpoint, want)
			}
			return nil
		})
	}
	one := sandboxOf("one")
	if _, err := l.add(one, 0, nil); err != nil {
		t.Fatal(err)
	}
	published("one/eth0")

	before := l.devices(t)
	one.ifname = "net1"
	_, err = l.add(one, 0, nil)
	if err == nil || !strings.Contains(err.Error(), "code 101") || !strings.Contains(err.Error(), "container one has eth0: a container gets one interface from Twill") {
		t.Errorf("a second interface: %v", err)
	}
	if after := l.devices(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("devices were %v, are %v", before, after)
	}
	if _, err := l.call("DEL", one, 0, nil); err != nil { // as runtimes do after a failure
		t.Error(err)
	}
	one.ifname = ""
	if _, err := l.call("CHECK", one, 0, nil); err != nil && !strings.Contains(err.Error(), "prevResult") {
		t.Error(err)
	}

	// The pod of this name is attached by another container, too, which fails or ends.
	two := sandboxOf("two")
	if _, err := l.add(two, 0, nil); err != nil {
		t.Fatal(err)
	}
	published("two/eth0")
	if _, err := l.call("DEL", two, 0, nil); err != nil {
		t.Fatal(err)
	}
	published("one/eth0")

	// An interface that is being taken down is no other.
	if _, err := l.call("DEL", one, 0, nil); err != nil {
		t.Fatal(err)
	}
	one.ifname = "net1"
	if _, err := l.add(one, 0, nil); err != nil {
		t.Error(err)
	}
	published("one/net1")
	if _, err := l.call("DEL", one, 0, nil); err != nil {
		t.Error(err)
	}
}
