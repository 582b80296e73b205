package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	strictjson "sigs.k8s.io/json"
)

// Decoded is one object of a manifest, with defaults applied, and valid.
type Decoded struct {
	Object   Object
	Kind     *Kind
	Document int // counted from 1, without empty documents
	Item     int // place in a List, counted from 1; 0 when not in one
}

// Decode reads a manifest: any number of YAML or JSON documents, each one
// object or a List of them. It is as strict as the API server with strict
// field validation: names of fields are case-sensitive, unknown and duplicate
// fields are errors. Namespaced objects without a namespace get the given one;
// defaults are applied, and each object is validated by itself.
//
// The error is a *ManifestError that lists every problem of every document.
// The objects without problems are returned beside it.
func Decode(manifest []byte, namespace string) ([]Decoded, error) {
	d := decoder{namespace: namespace, first: map[string]place{}}
	for i, doc := range splitDocuments(manifest) {
		d.at = place{document: i + 1}
		raw, duplicates, err := doc.toJSON()
		if err != nil {
			d.report("", Problem{Reason: err.Error()})
			continue
		}
		d.document(raw, duplicates)
	}
	if len(d.problems) > 0 {
		return d.objects, &ManifestError{Problems: d.problems}
	}
	return d.objects, nil
}

type place struct{ document, item int }

// decoder collects what Decode returns.
type decoder struct {
	namespace string
	at        place
	objects   []Decoded
	problems  []Problem
	first     map[string]place // of each object, to find duplicates
}

// header is what tells the kind of a document.
type header struct {
	APIVersion string
	Kind       string
	Name       string
	Namespace  string
}

func (d *decoder) document(raw []byte, duplicates []string) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(raw, &top); err != nil || top == nil {
		d.report("", Problem{Reason: "not an object: a manifest has fields such as apiVersion, kind and metadata"})
		return
	}
	h := readHeader(top)
	if !h.isList() {
		d.object(raw, h, duplicates)
		return
	}
	d.report(h.Kind, duplicateFields(duplicates)...)
	for _, name := range slices.Sorted(maps.Keys(top)) {
		if !slices.Contains([]string{"apiVersion", "kind", "metadata", "items"}, name) {
			d.report(h.Kind, unknownField(name))
		}
	}
	var items []json.RawMessage
	if err := json.Unmarshal(top["items"], &items); err != nil && top["items"] != nil {
		d.report(h.Kind, Problem{Field: "items", Reason: "must be a list of objects"})
	}
	d.items(items, h)
}

func (d *decoder) items(items []json.RawMessage, list header) {
	for i, item := range items {
		d.at.item = i + 1
		var top map[string]json.RawMessage
		if err := json.Unmarshal(item, &top); err != nil || top == nil {
			d.report("", Problem{Reason: "not an object: each item has fields such as apiVersion, kind and metadata"})
			continue
		}
		h := readHeader(top)
		if list.Kind != "List" { // items of a typed list need not repeat what the list says
			if h.APIVersion == "" {
				h.APIVersion = list.APIVersion
			}
			if h.Kind == "" {
				h.Kind = strings.TrimSuffix(list.Kind, "List")
			}
		}
		if h.isList() {
			d.report(h.Kind, Problem{Reason: "a list inside a list: put its items into the outer one"})
			continue
		}
		d.object(item, h, nil)
	}
	d.at.item = 0
}

func readHeader(top map[string]json.RawMessage) header {
	var h header
	var meta struct{ Name, Namespace string }
	// What is no string is reported by the strict decoding of the whole.
	_ = json.Unmarshal(top["apiVersion"], &h.APIVersion)
	_ = json.Unmarshal(top["kind"], &h.Kind)
	_ = json.Unmarshal(top["metadata"], &meta)
	h.Name, h.Namespace = meta.Name, meta.Namespace
	return h
}

func (h header) isList() bool {
	if h.Kind == "List" && h.APIVersion == "v1" {
		return true
	}
	item, ok := strings.CutSuffix(h.Kind, "List")
	return ok && LookupGVK(h.APIVersion, item) != nil
}

func (h header) String() string {
	if h.Name == "" {
		return h.Kind
	}
	return strings.TrimSpace(h.Kind + " " + Key{h.Namespace, h.Name}.String())
}

// object decodes one object; duplicates are the fields that its YAML had twice.
func (d *decoder) object(raw []byte, h header, duplicates []string) {
	kind := LookupGVK(h.APIVersion, h.Kind)
	if kind == nil {
		d.report(h.String(), unknownKind(h)...)
		return
	}
	if kind.Namespaced && h.Namespace == "" {
		h.Namespace = d.namespace
	}
	obj := kind.New()
	problems, complete := decodeStrict(raw, obj)
	problems = append(problems, duplicateFields(duplicates)...)
	if complete {
		if kind.Namespaced && obj.GetNamespace() == "" {
			obj.SetNamespace(d.namespace)
		}
		Default(obj)
		problems = append(problems, d.validate(kind, obj)...)
	}
	if len(problems) > 0 {
		d.report(h.String(), problems...)
		return
	}
	d.objects = append(d.objects, Decoded{obj, kind, d.at.document, d.at.item})
}

func (d *decoder) validate(kind *Kind, obj Object) []Problem {
	var problems []Problem
	for _, e := range Validate(obj) {
		problems = append(problems, Problem{Field: e.Field, Reason: e.ErrorBody()})
	}
	id := kind.Name + " " + KeyOf(obj).String()
	if before, twice := d.first[id]; twice && obj.GetName() != "" {
		problems = append(problems, Problem{Field: "metadata.name", Reason: fmt.Sprintf("the same object stands in %s", before)})
	} else {
		d.first[id] = d.at
	}
	return problems
}

// report adds problems of an object, or of what its header says it is.
func (d *decoder) report(object string, problems ...Problem) {
	for _, p := range problems {
		p.Document, p.Item, p.Object = d.at.document, d.at.item, object
		d.problems = append(d.problems, p)
	}
}

func unknownKind(h header) []Problem {
	var missing []Problem
	if h.APIVersion == "" {
		missing = append(missing, Problem{Field: "apiVersion", Reason: "Required value"})
	}
	if h.Kind == "" {
		missing = append(missing, Problem{Field: "kind", Reason: "Required value"})
	}
	if missing != nil {
		return missing
	}
	var accepted []string
	for _, k := range Kinds() {
		if k.Name == h.Kind {
			return []Problem{{Field: "apiVersion", Reason: fmt.Sprintf("%s is of %s, not of %s", k.Name, k.APIVersion(), h.APIVersion)}}
		}
		accepted = append(accepted, k.APIVersion()+" "+k.Name)
	}
	return []Problem{{Field: "kind", Reason: fmt.Sprintf("Twill does not keep %s %s; it keeps %s", h.APIVersion, h.Kind, strings.Join(accepted, ", "))}}
}

// decodeStrict fills obj from JSON. It reports false when some of it could not
// be decoded, so that obj is not worth validating.
func decodeStrict(raw []byte, obj Object) ([]Problem, bool) {
	strict, err := strictjson.UnmarshalStrict(raw, obj)
	if err != nil {
		// The decoder stops at the first value of a wrong type and forgets the
		// rest: look for all of them.
		if problems := mistypedFields(raw, obj); len(problems) > 0 {
			return problems, false
		}
		return []Problem{{Reason: err.Error()}}, false
	}
	var problems []Problem
	for _, e := range strict {
		path := ""
		var fe strictjson.FieldError
		if errors.As(e, &fe) {
			path = fe.FieldPath()
		}
		if strings.HasPrefix(e.Error(), "duplicate") {
			problems = append(problems, duplicateFields([]string{path})...)
		} else {
			problems = append(problems, unknownField(path))
		}
	}
	return problems, true
}

func unknownField(path string) Problem {
	return Problem{Field: path, Reason: "unknown field"}
}

func duplicateFields(paths []string) []Problem {
	var problems []Problem
	for _, path := range paths {
		problems = append(problems, Problem{Field: path, Reason: "the field is given twice"})
	}
	return problems
}
