package trace

import (
	"encoding/json"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/policy"
)

// FuzzTrace asks about a cluster into which somebody wrote an object past the
// API: it is refused by name, or there is an answer to every question.
func FuzzTrace(f *testing.F) {
	decoded, err := api.Decode([]byte(cluster+accessNginx), "default")
	if err != nil {
		f.Fatal(err)
	}
	var objects []api.Object
	for _, d := range decoded {
		objects = append(objects, d.Object)
		value, err := json.Marshal(d.Object)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(value, "access", "nginx")
	}
	pool, err := yaml.YAMLToJSON([]byte(`{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p}, spec: {cidr: 10.244.0.0/16, vxlanMode: CrossSubnet}}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pool, "node/master", "policy-demo/nginx-1")
	f.Add([]byte("{}"), "10.244.1.2", "nginx.policy-demo.svc.cluster.local")
	f.Fuzz(func(t *testing.T, value []byte, from, to string) {
		var header struct{ APIVersion, Kind string }
		if json.Unmarshal(value, &header) != nil {
			return
		}
		all := objects
		for _, kind := range api.Kinds() {
			obj := kind.New()
			if kind.Name == header.Kind && json.Unmarshal(value, obj) == nil {
				all = append(all[:len(all):len(all)], obj)
			}
		}
		s, err := New(all)
		if err != nil {
			return
		}
		for _, q := range []Query{{"policy-demo", from, to, policy.TCP, 80, ""}, {"policy-demo", "access", "nginx", policy.TCP, 80, ""}, {"", to, from, policy.UDP, 30080, ""},
			{"policy-demo", from, to, 0, 0, "http"}} {
			r, err := s.Trace(q)
			if err == nil && (r.Verdict == "" || r.Sentence == "") {
				t.Errorf("%+v gets %+v", q, r)
			}
		}
	})
}
