package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	json "github.com/go-json-experiment/json/v1"
	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/twill-net/twill/api"
)

// The functions below are for implementations of Store, so that an object
// means the same in each.

// CheckKey refuses keys that no object of the kind can have.
func CheckKey(kind *api.Kind, key api.Key) error {
	switch {
	case key.Name == "" || strings.Contains(key.Name, "/"):
		return fmt.Errorf("%s %q: a name is needed, without \"/\"", kind.Name, key.Name)
	case strings.Contains(key.Namespace, "/"):
		return fmt.Errorf("%s %s: namespace must not contain \"/\"", kind.Name, key)
	case kind.Namespaced && key.Namespace == "":
		return fmt.Errorf("%s %s: a namespace is needed", kind.Name, key)
	case !kind.Namespaced && key.Namespace != "":
		return fmt.Errorf("%s %s: this kind has no namespace", kind.Name, key)
	}
	return nil
}

// CheckNamespace refuses lists of a namespace of a kind that has none.
func CheckNamespace(kind *api.Kind, namespace string) error {
	if namespace == "" {
		return nil
	}
	return CheckKey(kind, api.Key{Namespace: namespace, Name: "any"})
}

// CheckObject returns the object's kind and key, or why it can't be stored.
func CheckObject(obj api.Object) (*api.Kind, api.Key, error) {
	kind := api.KindOf(obj)
	if kind == nil {
		return nil, api.Key{}, fmt.Errorf("objects of type %T are not kept", obj)
	}
	key := api.KeyOf(obj)
	return kind, key, CheckKey(kind, key)
}

// EncodeNew is the stored form of an object that is created now: with uid,
// creation time and first generation. obj is left as it is.
func EncodeNew(kind *api.Kind, obj api.Object, now time.Time) ([]byte, error) {
	obj = obj.DeepCopyObject().(api.Object)
	obj.SetUID(types.UID(uuid.NewString()))
	obj.SetCreationTimestamp(metav1.NewTime(now.UTC().Truncate(time.Second)))
	obj.SetGeneration(1)
	return encode(kind, obj)
}

// EncodeNext is the stored form of obj where old is stored now, and whether it
// differs from old's. Both are left as they are.
func EncodeNext(kind *api.Kind, old, obj api.Object) (value []byte, changed bool, err error) {
	obj = obj.DeepCopyObject().(api.Object)
	obj.SetUID(old.GetUID())
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	obj.SetGeneration(old.GetGeneration())
	before, err := encode(kind, old)
	if err != nil {
		return nil, false, err
	}
	if value, err = encode(kind, obj); err != nil || bytes.Equal(value, before) {
		return value, false, err
	}
	sameSpec, err := equalButForStatus(before, value)
	if err != nil || sameSpec {
		return value, true, err
	}
	obj.SetGeneration(old.GetGeneration() + 1)
	value, err = encode(kind, obj)
	return value, true, err
}

func encode(kind *api.Kind, obj api.Object) ([]byte, error) {
	obj = obj.DeepCopyObject().(api.Object)
	obj.SetResourceVersion("")
	obj.GetObjectKind().SetGroupVersionKind(kind.New().GetObjectKind().GroupVersionKind())
	value, err := json.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", kind.Name, api.KeyOf(obj), err)
	}
	return value, nil
}

// equalButForStatus compares what a generation counts: everything but metadata
// and status. Not every kind keeps it under "spec".
func equalButForStatus(a, b []byte) (bool, error) {
	var fields [2]map[string]json.RawMessage
	for i, value := range [][]byte{a, b} {
		if err := json.Unmarshal(value, &fields[i]); err != nil {
			return false, err
		}
		delete(fields[i], "metadata")
		delete(fields[i], "status")
	}
	if len(fields[0]) != len(fields[1]) {
		return false, nil
	}
	for name, value := range fields[0] {
		if !bytes.Equal(value, fields[1][name]) {
			return false, nil
		}
	}
	return true, nil
}

// Stream starts a watch, which run is, and returns what Store.Watch does.
func Stream(ctx context.Context, kind *api.Kind, run func(chan<- Event) error) (<-chan Event, func() error) {
	ch := make(chan Event)
	var err error
	go func() {
		defer close(ch)
		err = run(ch)
		switch {
		case ctx.Err() != nil:
			err = nil
		case err != nil:
			err = fmt.Errorf("watch %s: %w", kind.Plural, err)
		}
	}()
	return ch, func() error { return err }
}

// collectTries is how often a list is begun that compaction overtakes.
const collectTries = 3

// Collect makes one list of pages.
func Collect(pages func(take func([]api.Object)) (List, error)) (list List, err error) {
	for range collectTries {
		var items []api.Object
		list, err = pages(func(page []api.Object) { items = append(items, page...) })
		list.Items = items
		if !errors.Is(err, ErrCompacted) {
			break
		}
	}
	if err != nil {
		return List{}, err
	}
	return list, nil
}

// Spread calls f with 0 to n-1 on all processors at once. Decoding is most of what
// a first list takes.
func Spread(n int, f func(i int)) {
	var wait sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), n)
	for w := range workers {
		wait.Go(func() {
			for i := w * n / workers; i < (w+1)*n/workers; i++ {
				f(i)
			}
		})
	}
	wait.Wait()
}

// Decode reads the stored form of the object at the key. It refuses a value
// that is not an object of the kind or is another key's; unknown fields, which
// a newer version may have written, are dropped.
func Decode(kind *api.Kind, key api.Key, value []byte, resourceVersion string) (api.Object, error) {
	obj := kind.New()
	want := obj.GetObjectKind().GroupVersionKind()
	if err := json.Unmarshal(value, obj); err != nil {
		return nil, fmt.Errorf("not a %s: %w", kind.Name, err)
	}
	if got := obj.GetObjectKind().GroupVersionKind(); got != want {
		return nil, fmt.Errorf("apiVersion and kind are %q %q, not %q %q", got.GroupVersion(), got.Kind, want.GroupVersion(), want.Kind)
	}
	if got := api.KeyOf(obj); got != key {
		if got == (api.Key{}) {
			return nil, errors.New("no name in its metadata")
		}
		return nil, fmt.Errorf("its metadata says %q", got)
	}
	obj.SetResourceVersion(resourceVersion)
	return obj, nil
}
