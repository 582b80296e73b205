package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/deploy"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// nodeLeaves takes a node out of the cluster and puts it back: the others forget
// it within seconds, and know it again as soon as it is there.
func (k *kubernetes) nodeLeaves(t *testing.T) {
	const gone = "node02"
	mentions := func() error {
		for _, other := range []string{"master", "node01"} {
			routes, err := k.At(t.Context(), lab.Node(other), "ip", "route")
			if err != nil {
				return err
			}
			if strings.Contains(routes, "172.16.10.12") {
				return fmt.Errorf("%s has routes by %s:\n%s", other, gone, routes)
			}
		}
		blocks, err := k.kubectl("", "get", "ipamblocks", "-o", "jsonpath={.items[*].spec.affinity}")
		if err == nil && strings.Contains(blocks, gone) {
			err = fmt.Errorf("blocks are still those of %s: %s", gone, blocks)
		}
		return err
	}
	k.must("", "drain", gone, "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout", kubernetesPatience.String())
	if err := k.Control(lab.ControlRequest{Process: lab.Kubelet, Node: gone, Action: lab.Stop}); err != nil {
		t.Fatal(err)
	}
	k.must("", "delete", "node", gone)
	took := testlab.Eventually(t, kubernetesPatience, mentions)
	t.Logf("the others had forgotten %s %s after it was deleted", gone, took.Round(10*time.Millisecond))

	if err := k.Control(lab.ControlRequest{Process: lab.Kubelet, Node: gone, Action: lab.Start}); err != nil {
		t.Fatal(err)
	}
	testlab.Eventually(t, kubernetesPatience, func() error { _, err := k.kubectl("", "get", "node", gone); return err })
	took = testlab.Eventually(t, kubernetesPatience, func() error {
		if mentions() == nil {
			return errors.New("nobody has a route by it")
		}
		return nil
	})
	t.Logf("the others had routes by %s %s after it had registered", gone, took.Round(10*time.Millisecond))
	k.must("", "wait", "node", gone, "--for=condition=Ready", "--timeout", kubernetesPatience.String())
}

// request is what the API server wrote down of one.
type request struct {
	Verb      string
	User      struct{ Username string }
	ObjectRef struct{ APIGroup, Resource, Subresource, Namespace, Name string }
	Response  struct{ Code int } `json:"responseStatus"`
	URI       string             `json:"requestURI"`
}

// permissions holds what the service accounts may do against what they did.
func (k *kubernetes) permissions(t *testing.T) {
	text, err := os.ReadFile(lab.AuditLog(k.Config.Name))
	if err != nil {
		t.Fatal(err)
	}
	did, refused := map[string]bool{}, map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		account, ok := strings.CutPrefix(r.User.Username, "system:serviceaccount:kube-system:")
		if !ok || !strings.HasPrefix(account, "twill-") || r.ObjectRef.Resource == "" {
			continue
		}
		resource := r.ObjectRef.Resource
		if r.ObjectRef.Subresource != "" {
			resource += "/" + r.ObjectRef.Subresource
		}
		one := strings.Join([]string{account, r.Verb, r.ObjectRef.APIGroup, resource}, " ")
		if r.Response.Code == http.StatusForbidden {
			refused[one] = r.URI
		} else {
			did[one] = true
		}
	}
	// An API server that has just started refuses what it has not read yet.
	for one, uri := range refused {
		if !did[one] {
			t.Errorf("refused: %s: %s", one, uri)
		}
	}
	may := granted(t)
	for _, one := range may {
		if !did[one] {
			t.Errorf("not used: %s", one)
		}
	}
	for one := range did {
		if !slices.Contains(may, one) {
			t.Errorf("done by no rule of ours: %s", one)
		}
	}
	t.Logf("%d things are allowed to the service accounts, and each was done", len(may))
}

// granted is what the manifest allows, as "ACCOUNT VERB GROUP RESOURCE".
func granted(t *testing.T) (all []string) {
	for _, text := range bytes.Split(deploy.Manifest(), []byte("\n---\n")) {
		var role rbacv1.ClusterRole // a Role has the same rules
		if err := yaml.Unmarshal(text, &role); err != nil {
			t.Fatal(err)
		}
		if role.Kind != "ClusterRole" && role.Kind != "Role" {
			continue
		}
		for _, rule := range role.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						all = append(all, strings.Join([]string{role.Name, verb, group, resource}, " "))
					}
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
