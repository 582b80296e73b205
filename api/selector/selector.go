// Package selector is Calico's selector language: boolean expressions over
// labels, such as
//
//	role == "edge" && !has(quarantine) || zone in {"a", "b"}
//
// ParseSelector reads one, Matches evaluates it, String prints it in one
// canonical form. Kubernetes' own label selectors are another language and are
// not handled here.
//
// It never looks anything up: labels come in, a verdict comes out.
package selector

import (
	"slices"
	"strings"
)

// Selector is a parsed expression. The zero value matches everything, as the
// empty text and all() do. A Selector may be used concurrently.
type Selector struct {
	root node
}

// Matches says whether an object with these labels is selected.
func (s Selector) Matches(labels map[string]string) bool {
	return s.root == nil || s.root.matches(labels)
}

// String is the canonical text: one space around operators, the values of a
// set sorted and each only once. ParseSelector of it gives an equal selector.
func (s Selector) String() string {
	if s.root == nil {
		return "all()"
	}
	var b strings.Builder
	s.root.print(&b)
	return b.String()
}

// node is one part of an expression.
type node interface {
	matches(labels map[string]string) bool
	print(b *strings.Builder)
	// binding is how tightly the node holds together in text: what binds less
	// than the operator around it needs parentheses.
	binding() int
}

const (
	bindsOr = iota
	bindsAnd
	bindsNot
	bindsAtom
)

type (
	all  struct{}
	has  struct{ label string }
	not  struct{ operand node }
	and  struct{ operands []node }
	or   struct{ operands []node }
	test struct {
		label    string
		operator string
		value    string
	}
	member struct {
		label  string
		values []string // sorted, unique
		not    bool
	}
)

// The operators that compare a label with one string.
const (
	equals     = "=="
	differs    = "!="
	contains   = "contains"
	startsWith = "starts with"
	endsWith   = "ends with"
)

func (all) matches(map[string]string) bool { return true }

func (n has) matches(labels map[string]string) bool {
	_, ok := labels[n.label]
	return ok
}

func (n not) matches(labels map[string]string) bool { return !n.operand.matches(labels) }

func (n and) matches(labels map[string]string) bool {
	for _, o := range n.operands {
		if !o.matches(labels) {
			return false
		}
	}
	return true
}

func (n or) matches(labels map[string]string) bool {
	for _, o := range n.operands {
		if o.matches(labels) {
			return true
		}
	}
	return false
}

// An absent label differs from every string and matches no other comparison.
func (n test) matches(labels map[string]string) bool {
	value, ok := labels[n.label]
	switch n.operator {
	case equals:
		return ok && value == n.value
	case differs:
		return !ok || value != n.value
	case contains:
		return ok && strings.Contains(value, n.value)
	case startsWith:
		return ok && strings.HasPrefix(value, n.value)
	default: // endsWith
		return ok && strings.HasSuffix(value, n.value)
	}
}

// An absent label is in no set.
func (n member) matches(labels map[string]string) bool {
	value, ok := labels[n.label]
	if ok {
		_, ok = slices.BinarySearch(n.values, value)
	}
	return ok != n.not
}

func (all) print(b *strings.Builder)   { b.WriteString("all()") }
func (n has) print(b *strings.Builder) { b.WriteString("has(" + n.label + ")") }

func (n not) print(b *strings.Builder) {
	b.WriteByte('!')
	printWithin(b, n.operand, bindsNot)
}

func (n and) print(b *strings.Builder) { printJoined(b, n.operands, " && ", bindsAnd) }
func (n or) print(b *strings.Builder)  { printJoined(b, n.operands, " || ", bindsOr) }

func (n test) print(b *strings.Builder) {
	b.WriteString(n.label + " " + n.operator + " " + quote(n.value))
}

func (n member) print(b *strings.Builder) {
	b.WriteString(n.label)
	if n.not {
		b.WriteString(" not")
	}
	b.WriteString(" in {")
	for i, v := range n.values {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(v))
	}
	b.WriteByte('}')
}

func (all) binding() int    { return bindsAtom }
func (has) binding() int    { return bindsAtom }
func (not) binding() int    { return bindsNot }
func (and) binding() int    { return bindsAnd }
func (or) binding() int     { return bindsOr }
func (test) binding() int   { return bindsAtom }
func (member) binding() int { return bindsAtom }

func printJoined(b *strings.Builder, operands []node, operator string, binding int) {
	for i, o := range operands {
		if i > 0 {
			b.WriteString(operator)
		}
		printWithin(b, o, binding)
	}
}

func printWithin(b *strings.Builder, n node, binding int) {
	if n.binding() >= binding {
		n.print(b)
		return
	}
	b.WriteByte('(')
	n.print(b)
	b.WriteByte(')')
}

// quote puts a string into the quotes that it does not contain: the language
// has no escapes, so a string has at most one of the two.
func quote(s string) string {
	if strings.Contains(s, `"`) {
		return "'" + s + "'"
	}
	return `"` + s + `"`
}
