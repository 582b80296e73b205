package kube

import (
	"testing"

	"github.com/twill-net/twill/api"
)

// FuzzDecode reads what an API server may send: it is an object, no endpoint, or
// an error; and an object that is written as it was read is no change.
func FuzzDecode(f *testing.F) {
	for _, raw := range []string{
		`{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"a","name":"b","labels":{"app":"web"}},"spec":{"nodeName":"n","containers":[{"ports":[{"name":"http","containerPort":80,"hostPort":8080}]}]},"status":{"podIPs":[{"ip":"10.244.0.2"},{"ip":"fd00::2"}]}}`,
		`{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"},"status":{"conditions":[{"type":"Ready","status":"True"}]}}`,
		`{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"p"},"spec":{"cidr":"10.244.0.0/16"}}`,
		`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"namespace":"a","name":"b"},"spec":{"ingress":[{"from":[{"podSelector":{}}]}]}}`,
		`{"metadata":null}`, `null`, `[]`, `{"kind":7}`,
	} {
		for n := range api.Kinds() {
			f.Add(n, []byte(raw))
		}
	}
	f.Fuzz(func(t *testing.T, n int, raw []byte) {
		kinds := api.Kinds()
		kind := kinds[uint(n)%uint(len(kinds))]
		_ = keyOf(raw)
		obj, err := decode(kind, raw)
		if err != nil || obj == nil {
			return
		}
		patches, err := patchesOf(kind, obj, obj.DeepCopyObject().(api.Object))
		if err != nil || len(patches) > 0 {
			t.Errorf("%s, written as it was read, is changed: %+v, %v", raw, patches, err)
		}
	})
}
