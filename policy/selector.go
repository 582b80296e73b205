package policy

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// NamespaceNameLabel is the label by which every namespace carries its own
// name, whether or not we know the namespace.
const NamespaceNameLabel = "kubernetes.io/metadata.name"

// Selector selects things by their labels. It is immutable; selectors with the
// same String select the same.
type Selector struct {
	requirements []requirement // all must hold
	nothing      bool
	text         string
}

// requirement is one condition on one label.
type requirement struct {
	key    string
	op     metav1.LabelSelectorOperator
	values []string // sorted; for In and NotIn
}

// NewSelector makes a Selector of a label selector: nil selects nothing, an
// empty one selects everything. Errors name the field that is wrong.
func NewSelector(ls *metav1.LabelSelector) (*Selector, error) {
	if ls == nil {
		return &Selector{nothing: true, text: "!*"}, nil
	}
	var rs []requirement
	for key, value := range ls.MatchLabels {
		r := requirement{key, metav1.LabelSelectorOpIn, []string{value}}
		if err := r.validate(); err != nil {
			return nil, fmt.Errorf("matchLabels: %w", err)
		}
		rs = append(rs, r)
	}
	for i, e := range ls.MatchExpressions {
		values := slices.Clone(e.Values)
		slices.Sort(values)
		r := requirement{e.Key, e.Operator, slices.Compact(values)}
		if err := r.validate(); err != nil {
			return nil, fmt.Errorf("matchExpressions[%d]: %w", i, err)
		}
		rs = append(rs, r)
	}
	return selectorOf(rs...), nil
}

// selectorOf makes the canonical selector of valid requirements.
func selectorOf(rs ...requirement) *Selector {
	slices.SortFunc(rs, func(a, b requirement) int { return strings.Compare(a.String(), b.String()) })
	rs = slices.CompactFunc(rs, func(a, b requirement) bool { return a.String() == b.String() })
	words := make([]string, len(rs))
	for i, r := range rs {
		words[i] = r.String()
	}
	if len(rs) == 0 {
		return &Selector{text: "*"}
	}
	return &Selector{requirements: rs, text: strings.Join(words, ",")}
}

// selectName selects the one namespace of that name.
func selectName(name string) *Selector {
	return selectorOf(requirement{NamespaceNameLabel, metav1.LabelSelectorOpIn, []string{name}})
}

// namespaceName returns the name if the selector is for the one namespace of
// that name.
func (s *Selector) namespaceName() (string, bool) {
	if len(s.requirements) != 1 {
		return "", false
	}
	r := s.requirements[0]
	if r.key != NamespaceNameLabel || r.op != metav1.LabelSelectorOpIn || len(r.values) != 1 {
		return "", false
	}
	return r.values[0], true
}

// String is the selector in the notation of kubectl's -l, requirements sorted;
// "*" selects everything and "!*" nothing.
func (s *Selector) String() string { return s.text }

// Everything says whether the selector has no requirements.
func (s *Selector) Everything() bool { return !s.nothing && len(s.requirements) == 0 }

// Matches says whether the selector selects something with these labels.
func (s *Selector) Matches(labels map[string]string) bool {
	if s.nothing {
		return false
	}
	for i := range s.requirements {
		value, present := labels[s.requirements[i].key]
		if !s.requirements[i].holds(value, present) {
			return false
		}
	}
	return true
}

// holds judges the value of the requirement's label. An absent label is in no
// list of values.
func (r *requirement) holds(value string, present bool) bool {
	switch r.op {
	case metav1.LabelSelectorOpIn:
		return present && slices.Contains(r.values, value)
	case metav1.LabelSelectorOpNotIn:
		return !present || !slices.Contains(r.values, value)
	case metav1.LabelSelectorOpExists:
		return present
	default:
		return !present
	}
}

// validate refuses what the API server would refuse. It also keeps String
// unambiguous, because it leaves no commas or brackets in keys and values.
func (r requirement) validate() error {
	if problems := validation.IsQualifiedName(r.key); problems != nil {
		return fmt.Errorf("label key %q: %s", r.key, problems[0])
	}
	switch r.op {
	case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
		if len(r.values) == 0 {
			return fmt.Errorf("operator %s on %q needs at least one value", r.op, r.key)
		}
	case metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist:
		if len(r.values) != 0 {
			return fmt.Errorf("operator %s on %q takes no values", r.op, r.key)
		}
	default:
		return fmt.Errorf("operator %q on %q is not one of In, NotIn, Exists, DoesNotExist", r.op, r.key)
	}
	for _, v := range r.values {
		if problems := validation.IsValidLabelValue(v); problems != nil {
			return fmt.Errorf("value %q of label %q: %s", v, r.key, problems[0])
		}
	}
	return nil
}

func (r requirement) String() string {
	switch {
	case r.op == metav1.LabelSelectorOpExists:
		return r.key
	case r.op == metav1.LabelSelectorOpDoesNotExist:
		return "!" + r.key
	case r.op == metav1.LabelSelectorOpIn && len(r.values) == 1:
		return r.key + "=" + r.values[0]
	case r.op == metav1.LabelSelectorOpNotIn && len(r.values) == 1:
		return r.key + "!=" + r.values[0]
	case r.op == metav1.LabelSelectorOpIn:
		return r.key + " in (" + strings.Join(r.values, ",") + ")"
	default:
		return r.key + " notin (" + strings.Join(r.values, ",") + ")"
	}
}
