// Package e2e names what Kubernetes' end-to-end tests import and no program here
// does, so that go.mod has it: the tests of other modules are not looked into.
package e2e

import (
	_ "k8s.io/kubernetes/test/e2e/apimachinery"
)
