package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/twill-net/twill/api"
)

// FuzzShow prints an object that somebody wrote past the API, in every form: no
// command ends without an answer, and no text of the object steers the terminal.
func FuzzShow(f *testing.F) {
	term := newTerminal()
	term.output(nil, "apply", "-f", "testdata/cluster.yaml")
	for _, kind := range api.Kinds() {
		list, err := term.store.List(f.Context(), kind, "")
		if err != nil {
			f.Fatal(err)
		}
		for _, obj := range list.Items {
			value, err := json.Marshal(obj)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(value)
		}
	}
	f.Add([]byte(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"n","labels":{"a":"\u001b[31mred\r\n"}}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		var header struct{ APIVersion, Kind string }
		if json.Unmarshal(value, &header) != nil {
			return
		}
		for _, kind := range api.Kinds() {
			obj := kind.New()
			if kind.Name != header.Kind || json.Unmarshal(value, obj) != nil {
				continue
			}
			term := newTerminal()
			term.output(nil, "apply", "-f", "testdata/cluster.yaml")
			obj.SetResourceVersion("")
			if _, err := term.store.Create(t.Context(), obj); err != nil {
				continue // no key that an object can have
			}
			for _, args := range [][]string{
				{"get", plural(kind), "-A", "-o", "wide", "--show-labels"},
				{"get", plural(kind), "-n", obj.GetNamespace(), "-o", "name"},
				{"describe", plural(kind), "-n", obj.GetNamespace()},
				{"describe", "nodes,pods,services,netpol,pools", "-A"},
				{"fabric", "get"}, {"status"},
			} {
				text := term.output(nil, args...)
				if i := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' }); i >= 0 {
					t.Errorf("%s %q: a control character in %q", kind.Name, value, text[max(0, i-20):min(len(text), i+20)])
				}
			}
		}
	})
}
