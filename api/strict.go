package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// mistypedFields lists every field of a JSON object that obj's type does not
// have, or has with another type.
func mistypedFields(raw []byte, obj Object) []Problem {
	var value any
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.UseNumber()
	if err := dec.Decode(&value); err != nil {
		return nil
	}
	var problems []Problem
	checkType(value, reflect.TypeOf(obj).Elem(), nil, &problems)
	return problems
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func checkType(value any, t reflect.Type, path *field.Path, problems *[]Problem) {
	if value == nil {
		return // null leaves the zero value, whatever the type
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		checkScalar(value, t, path, problems)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if object, ok := value.(map[string]any); ok {
			checkStruct(object, t, path, problems)
			return
		}
	case reflect.Map:
		if object, ok := value.(map[string]any); ok {
			for _, key := range slices.Sorted(maps.Keys(object)) {
				checkType(object[key], t.Elem(), path.Key(key), problems)
			}
			return
		}
	case reflect.Slice:
		if list, ok := value.([]any); ok && t.Elem().Kind() != reflect.Uint8 {
			for i, item := range list {
				checkType(item, t.Elem(), path.Index(i), problems)
			}
			return
		}
	}
	checkScalar(value, t, path, problems)
}

func checkStruct(object map[string]any, t reflect.Type, path *field.Path, problems *[]Problem) {
	types := fieldTypes(t)
	for _, name := range slices.Sorted(maps.Keys(object)) {
		child := path.Child(name)
		if ft, ok := types[name]; ok {
			checkType(object[name], ft, child, problems)
		} else {
			*problems = append(*problems, unknownField(child.String()))
		}
	}
}

// fieldTypes are the types of a struct's fields by their JSON names.
func fieldTypes(t reflect.Type) map[string]reflect.Type {
	types := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && f.Anonymous:
			maps.Copy(types, fieldTypes(f.Type))
		case name == "":
			types[f.Name] = f.Type
		default:
			types[name] = f.Type
		}
	}
	return types
}

// checkScalar lets the type itself decode the value.
func checkScalar(value any, t reflect.Type, path *field.Path, problems *[]Problem) {
	raw, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(raw, reflect.New(t).Interface())
	}
	if err != nil {
		*problems = append(*problems, Problem{Field: path.String(), Reason: fmt.Sprintf("must be %s, not %s", typeName(t), excerpt(raw))})
	}
}

// excerpt is a value's JSON, cut to a length that suits a message.
func excerpt(raw []byte) string {
	if len(raw) > 40 {
		return string(raw[:40]) + "..."
	}
	return string(raw)
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string (put quotes around it)"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "an integer"
	case reflect.Int32:
		return "an integer of 32 bits"
	case reflect.Map:
		return "an object"
	case reflect.Slice:
		return "a list"
	}
	switch t.Name() {
	case "IntOrString":
		return "an integer or a string"
	case "Time", "MicroTime":
		return "a time as in RFC 3339"
	case "Quantity":
		return "a quantity such as 500m or 2Gi"
	}
	if t.Kind() == reflect.Struct {
		return "an object"
	}
	return fmt.Sprintf("of type %s", t)
}

// duplicateKeys lists the paths of keys that a YAML document has twice in one
// mapping. It is empty when the document can't be parsed.
func duplicateKeys(doc []byte) []string {
	var top yamlv2.MapSlice // keeps duplicates, which a Go map can't
	if err := yamlv2.Unmarshal(doc, &top); err != nil {
		return nil
	}
	var paths []string
	walkKeys(top, nil, &paths)
	return paths
}

func walkKeys(value any, path *field.Path, paths *[]string) {
	switch v := value.(type) {
	case yamlv2.MapSlice:
		seen := map[string]int{}
		for _, item := range v {
			key := fmt.Sprint(item.Key)
			child := path.Child(key)
			if seen[key]++; seen[key] == 2 {
				*paths = append(*paths, child.String())
			}
			walkKeys(item.Value, child, paths)
		}
	case []any:
		for i, item := range v {
			walkKeys(item, path.Index(i), paths)
		}
	}
}
