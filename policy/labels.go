package policy

import (
	"crypto/sha256"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type label struct{ key, value string }

// labelSet is the labels that something in a namespace has, sorted by key.
type labelSet struct {
	id     identityID
	labels []label
}

// identityID is a hash of a namespace's name and a set of labels.
type identityID [16]byte

func newLabelSet(namespace string, labels map[string]string) labelSet {
	s := labelSet{labels: make([]label, 0, len(labels))}
	for k, v := range labels {
		s.labels = append(s.labels, label{k, v})
	}
	slices.SortFunc(s.labels, func(a, b label) int { return strings.Compare(a.key, b.key) })
	var stack [512]byte // enough for most, and saves an allocation
	buf := append(append(stack[:0], namespace...), 0)
	for _, l := range s.labels {
		buf = append(append(buf, l.key...), 0)
		buf = append(append(buf, l.value...), 0)
	}
	sum := sha256.Sum256(buf)
	s.id = identityID(sum[:16])
	return s
}

// namespaceLabels are a namespace's labels with the one that all namespaces
// have.
func namespaceLabels(name string, labels map[string]string) []*label {
	out := []*label{{NamespaceNameLabel, name}}
	for k, v := range labels {
		if k != NamespaceNameLabel {
			out = append(out, &label{k, v})
		}
	}
	return out
}

// selects is Matches for labels in the compiler's form.
func (s *Selector) selects(labels []*label) bool {
	for i := range s.requirements {
		r := &s.requirements[i]
		var value string
		at := slices.IndexFunc(labels, func(l *label) bool { return l.key == r.key })
		if at >= 0 {
			value = labels[at].value
		}
		if !r.holds(value, at >= 0) {
			return false
		}
	}
	return !s.nothing
}

// anchor is a label that a selector can't do without: a key with a value, or
// with any.
type anchor struct {
	label
	anyValue bool
}

// anchors are labels of which whatever the selector selects has exactly one;
// nil if no requirement asks for a label.
func (s *Selector) anchors() []anchor {
	var best *requirement
	for i := range s.requirements {
		r := &s.requirements[i]
		switch r.op {
		case metav1.LabelSelectorOpIn:
			if best == nil || best.op != r.op || len(r.values) < len(best.values) {
				best = r
			}
		case metav1.LabelSelectorOpExists:
			if best == nil {
				best = r
			}
		}
	}
	switch {
	case best == nil:
		return nil
	case best.op == metav1.LabelSelectorOpExists:
		return []anchor{{label: label{key: best.key}, anyValue: true}}
	}
	out := make([]anchor, len(best.values))
	for i, v := range best.values {
		out[i] = anchor{label: label{best.key, v}}
	}
	return out
}
