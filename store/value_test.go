package store_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// FuzzDecode reads what anyone may have written: it must refuse or return the
// object of that key.
func FuzzDecode(f *testing.F) {
	for _, text := range []string{
		"", "null", "{}", "[]", "7", `{"metadata":{"namespace":"a","name":"b"}}`,
		`{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"a","name":"b","creationTimestamp":"x"}}`,
		`{"metadata":{"namespace":"a","name":"b"},"spec":{"ports":[{"port":1e9,"targetPort":true}]}}`,
	} {
		f.Add([]byte(text))
	}
	key := api.Key{Namespace: "a", Name: "b"}
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, kind := range api.Kinds() {
			key := key
			if !kind.Namespaced {
				key.Namespace = ""
			}
			obj, err := store.Decode(kind, key, value, "5")
			if err != nil {
				continue
			}
			if api.KeyOf(obj) != key || obj.GetResourceVersion() != "5" || api.KindOf(obj) != kind {
				t.Errorf("%s decoded to %+v", value, obj)
			}
			if _, changed, err := store.EncodeNext(kind, obj, obj); changed || err != nil {
				t.Errorf("%s differs from itself (%v)", value, err)
			}
		}
	})
}

func TestEncodeNewKeepsItsArgument(t *testing.T) {
	in := &corev1.Node{}
	in.Name, in.ResourceVersion, in.UID = "n", "7", "u"
	value, err := store.EncodeNew(api.NodeKind, in, time.Unix(1e9, 5))
	if err != nil {
		t.Fatal(err)
	}
	if in.ResourceVersion != "7" || in.UID != "u" || in.Kind != "" || in.Generation != 0 {
		t.Errorf("changed: %+v", in)
	}
	out, err := store.Decode(api.NodeKind, api.Key{Name: "n"}, value, "8")
	if err != nil || out.GetGeneration() != 1 || out.GetUID() == "u" || out.GetCreationTimestamp().Unix() != 1e9 {
		t.Errorf("%+v, %v", out, err)
	}
}
