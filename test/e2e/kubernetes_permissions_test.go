package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/deploy"
	"github.com/twill-net/twill/lab"
)

// request is what the API server wrote down of one.
type request struct {
	Verb      string
	User      struct{ Username string }
	ObjectRef struct{ APIGroup, Resource, Subresource, Namespace, Name string }
	Response  struct{ Code int } `json:"responseStatus"`
	URI       string             `json:"requestURI"`
}

// permissions holds what the service accounts may do against what they did.
func (k *kubernetes) permissions() {
	text, err := os.ReadFile(lab.AuditLog(k.Config.Name))
	if err != nil {
		k.Fatal(err)
	}
	did, refused := map[string]bool{}, map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			k.Fatal(err)
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
			k.Errorf("refused: %s: %s", one, uri)
		}
	}
	may := granted(k.T)
	for _, one := range may {
		if !did[one] {
			k.Errorf("not used: %s", one)
		}
	}
	for one := range did {
		if !slices.Contains(may, one) {
			k.Errorf("done by no rule of ours: %s", one)
		}
	}
	k.Logf("%d things are allowed to the service accounts, and each was done", len(may))
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
