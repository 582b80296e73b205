package api

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// ProgrammedAnnotation on the Lease of a node's agent holds how far the node's
// kernel has got with intent, as JSON of Programmed.
const ProgrammedAnnotation = GroupTwill + "/programmed"

// Programmed maps the resource name of a kind, such as
// "networkpolicies.networking.k8s.io", to a resourceVersion: all changes of the
// kind up to that one are in the node's kernel. Versions of different kinds are
// not compared: the API server may keep them in different databases.
type Programmed map[string]uint64

// Version is the resourceVersion up to which changes of the kind are in the kernel;
// 0 if none is known to be.
func (p Programmed) Version(k *Kind) uint64 { return p[k.Resource()] }

// Set makes Version return the given one.
func (p *Programmed) Set(k *Kind, version uint64) {
	if *p == nil {
		*p = Programmed{}
	}
	(*p)[k.Resource()] = version
}

// Newest is the highest resourceVersion of all kinds.
func (p Programmed) Newest() uint64 {
	newest := uint64(0)
	for _, version := range p {
		newest = max(newest, version)
	}
	return newest
}

// LeaseProgrammed reads an agent's ProgrammedAnnotation. A lease without one, such
// as an older agent's, is nil and no error.
func LeaseProgrammed(lease Object) (Programmed, error) {
	text, ok := lease.GetAnnotations()[ProgrammedAnnotation]
	if !ok {
		return nil, nil
	}
	var p Programmed
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return nil, fmt.Errorf("lease %s: annotation %s: %w", KeyOf(lease), ProgrammedAnnotation, err)
	}
	return p, nil
}

// VersionOf is the object's resourceVersion as a number, as Programmed has it; 0 if
// it has none.
func VersionOf(obj Object) uint64 {
	version, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return version
}

// WrittenByPeople says whether objects of the kind are written by people and
// their tools rather than by Twill or Kubernetes, so that a person may wait for
// the change.
func (k *Kind) WrittenByPeople() bool {
	switch k {
	case NamespaceKind, FabricConfigurationKind, IPPoolKind, ServiceKind, NetworkPolicyKind:
		return true
	}
	return false
}

// Resource is the kind's name with its group, such as
// "networkpolicies.networking.k8s.io".
func (k *Kind) Resource() string { return strings.TrimSuffix(k.Plural+"."+k.Group, ".") }
