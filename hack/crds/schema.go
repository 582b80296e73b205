package main

import (
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/twill-net/twill/api"
)

// schema is what we use of a structural OpenAPI v3 schema.
type schema struct {
	Type        string             `json:"type"`
	Format      string             `json:"format,omitempty"`
	Description string             `json:"description,omitempty"`
	Properties  map[string]*schema `json:"properties,omitempty"`
	Items       *schema            `json:"items,omitempty"`
	Required    []string           `json:"required,omitempty"`
	ListType    string             `json:"x-kubernetes-list-type,omitempty"`
	limits
}

// limits are what a value must keep to.
type limits struct {
	Enum        []any  `json:"enum,omitempty"`
	Pattern     string `json:"pattern,omitempty"`
	MinLength   *int   `json:"minLength,omitempty"`
	MaxLength   *int   `json:"maxLength,omitempty"`
	Minimum     *int   `json:"minimum,omitempty"`
	Maximum     *int   `json:"maximum,omitempty"`
	MaxItems    *int   `json:"maxItems,omitempty"`
	Default     any    `json:"default,omitempty"`
	Validations []rule `json:"x-kubernetes-validations,omitempty"`
}

// rule is an expression that must be true of a value.
type rule struct {
	Rule    string `json:"rule"`
	Message string `json:"message"`
}

// generator makes the schema of one kind.
type generator struct {
	comments comments
	kind     string
	used     map[string]bool // paths of rules
}

func (g *generator) schemaOf(kind *api.Kind) *schema {
	g.used = map[string]bool{}
	t := reflect.TypeOf(kind.New()).Elem()
	s := g.structure(t, g.kind)
	s.Description = g.comments[t.Name()]
	s.Properties["apiVersion"] = &schema{Type: "string"}
	s.Properties["kind"] = &schema{Type: "string"}
	s.Properties["metadata"] = &schema{Type: "object"}
	return s
}

// unused panics for rules of fields that do not exist.
func (g *generator) unused() {
	for path := range rules {
		if strings.HasPrefix(path+".", g.kind+".") && !g.used[path] {
			panic("rules for " + path + ", which is no field")
		}
	}
}

func (g *generator) structure(t reflect.Type, path string) *schema {
	s := &schema{Type: "object", Properties: map[string]*schema{}}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "metadata" {
			continue // what every object has
		}
		p := g.value(f.Type, path+"."+name)
		p.Description = g.comments[t.Name()+"."+f.Name]
		if rest, ok := strings.CutPrefix(p.Description, f.Name); ok {
			p.Description = name + rest
		}
		s.Properties[name] = p
		if !strings.Contains(options, "omitempty") {
			s.Required = append(s.Required, name)
		}
	}
	g.limit(s, path)
	return s
}

func (g *generator) value(t reflect.Type, path string) *schema {
	s := &schema{}
	switch t.Kind() {
	case reflect.Pointer:
		return g.value(t.Elem(), path)
	case reflect.Struct:
		return g.structure(t, path)
	case reflect.String:
		s.Type = "string"
	case reflect.Bool:
		s.Type = "boolean"
	case reflect.Int:
		s.Type = "integer"
	case reflect.Int32:
		s.Type, s.Format = "integer", "int32"
	case reflect.Slice:
		s.Type, s.Items, s.ListType = "array", g.value(t.Elem(), path+"[]"), "atomic"
		if sets[path] {
			s.ListType = "set"
		}
	default:
		panic(fmt.Sprintf("%s: no schema for %s", path, t))
	}
	g.limit(s, path)
	return s
}

func (g *generator) limit(s *schema, path string) {
	if l, ok := rules[path]; ok {
		s.limits = l
		g.used[path] = true
	}
}

// comments are those of package api's types and fields, as "Type" and
// "Type.Field".
type comments map[string]string

func readComments() (comments, error) {
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/twill-net/twill/api").Output()
	if err != nil {
		return nil, fmt.Errorf("find package api: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "*.go"))
	if err != nil {
		return nil, err
	}
	c := comments{}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		for _, d := range file.Decls {
			if d, ok := d.(*ast.GenDecl); ok {
				c.addTypes(d)
			}
		}
	}
	return c, nil
}

func (c comments) addTypes(d *ast.GenDecl) {
	for _, spec := range d.Specs {
		if t, ok := spec.(*ast.TypeSpec); ok {
			c.add(t.Name.Name, d.Doc)
			c.addFields(t)
		}
	}
}

func (c comments) addFields(t *ast.TypeSpec) {
	s, ok := t.Type.(*ast.StructType)
	if !ok {
		return
	}
	for _, f := range s.Fields.List {
		for _, name := range f.Names {
			c.add(t.Name.Name+"."+name.Name, f.Doc)
			c.add(t.Name.Name+"."+name.Name, f.Comment)
		}
	}
}

// add keeps a comment as one paragraph after another, each in one line.
func (c comments) add(name string, group *ast.CommentGroup) {
	if group == nil {
		return
	}
	p := comment.Printer{TextWidth: -1}
	c[name] = strings.TrimSpace(string(p.Text(new(comment.Parser).Parse(group.Text()))))
}
