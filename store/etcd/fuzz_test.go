package etcd

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/twill-net/twill/api"
)

// FuzzKey reads what anybody may have put under our prefix: a path is the key of
// one object or of none, and what is decoded is the object of that key.
func FuzzKey(f *testing.F) {
	f.Add("/twill/v1/core/services/default/web", []byte(`{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"default","name":"web"}}`))
	f.Add("/twill/v1/core/nodes/node01", []byte(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"node01"}}`))
	f.Add("/twill/v1/core/services/default/a/b", []byte(`{}`))
	f.Add("/twill/v1/core/services//b", []byte(`null`))
	f.Add("/twill/v1/projectcalico.org/ippools/", []byte(`[`))
	f.Fuzz(func(t *testing.T, path string, value []byte) {
		for _, kind := range api.Kinds() {
			obj, key, err := decode(kind, &mvccpb.KeyValue{Key: []byte(path), Value: value, ModRevision: 7})
			if err != nil {
				continue
			}
			if keyPath(kind, key) != path {
				t.Errorf("%q is the key of %s %s, whose path is %q", path, kind.Name, key, keyPath(kind, key))
			}
			if api.KeyOf(obj) != key {
				t.Errorf("%q holds %s", path, api.KeyOf(obj))
			}
		}
	})
}

// FuzzPosition reads what may be handed in as a revision.
func FuzzPosition(f *testing.F) {
	f.Add(position{1 << 40, 1<<63 + 5, 2, 3}.String())
	f.Add("1.2.3")
	f.Add("-z.0.+1")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePosition(text)
		if err != nil {
			return
		}
		if again, err := parsePosition(p.String()); err != nil || again != p {
			t.Errorf("%q is %+v, and written %+v, %v", text, p, again, err)
		}
	})
}

// FuzzEndpoint reads an endpoint from a flag: it is refused in one line, or has
// what the client needs.
func FuzzEndpoint(f *testing.F) {
	for _, text := range []string{"127.0.0.1:2379", "https://[::1]:2379", "unix:///run/etcd.sock", "http://", "ftp://a:1", "http://a b:1", "%"} {
		f.Add(text, false)
		f.Add(text, true)
	}
	f.Fuzz(func(t *testing.T, text string, haveTLS bool) {
		checked, secure, err := checkEndpoints([]string{text}, haveTLS)
		if err != nil {
			return
		}
		if haveTLS && !secure || len(checked) != 1 || !strings.Contains(checked[0], "://") {
			t.Errorf("%q gives %q, %v", text, checked, secure)
		}
	})
}
