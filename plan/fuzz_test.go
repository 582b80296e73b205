package plan

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/api"
)

// FuzzPlanner takes in an object that somebody wrote past the API, into a
// cluster that is well. When it is gone again, so is all that came with it.
func FuzzPlanner(f *testing.F) {
	for _, file := range []string{"testdata/cluster.yaml", "../api/testdata/good.yaml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		decoded, err := api.Decode(text, "default")
		if err != nil {
			f.Fatal(err)
		}
		for _, d := range decoded {
			value, err := json.Marshal(d.Object)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(value)
		}
	}
	events := scene(f)
	well := func() *Planner {
		pl := newScenePlanner()
		for _, e := range events {
			e.tell(pl)
		}
		pl.Flush()
		return pl
	}
	want := well().Flush().String()
	f.Fuzz(func(t *testing.T, value []byte) {
		var header struct{ APIVersion, Kind string }
		if json.Unmarshal(value, &header) != nil {
			return
		}
		group, _, ok := strings.Cut(header.APIVersion, "/")
		if !ok {
			group = ""
		}
		for _, kind := range api.Kinds() {
			if kind.Name != header.Kind || kind.Group != group {
				continue
			}
			obj := kind.New()
			if json.Unmarshal(value, obj) != nil {
				return
			}
			pl := well()
			var before api.Object // of this key, which is put back
			for _, e := range events {
				if e.put != nil && api.KindOf(e.put) == kind && api.KeyOf(e.put) == api.KeyOf(obj) {
					before = e.put
				}
			}
			pl.Put(obj)
			_ = pl.Flush().String()
			pl.Problems()
			if before != nil {
				pl.Put(before)
			} else {
				pl.Delete(kind, api.KeyOf(obj))
			}
			if diff := cmp.Diff(want, pl.Flush().String()); diff != "" {
				t.Errorf("%s %s leaves something behind:\n%s", kind.Name, api.KeyOf(obj), diff)
			}
			if problems := pl.Problems(); len(problems) > 0 {
				t.Errorf("%s %s leaves problems behind: %v", kind.Name, api.KeyOf(obj), problems)
			}
		}
	})
}
