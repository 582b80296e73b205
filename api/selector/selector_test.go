package selector

import (
	"strings"
	"testing"
)

func TestMatches(t *testing.T) {
	edge := map[string]string{"role": "edge", "zone": "a", "projectcalico.org/rack": "r-12", "empty": ""}
	for _, tt := range []struct {
		text string
		want bool
	}{
		{"", true},
		{"  \n", true},
		{"all()", true},
		{"all( )", true},
		{"!all()", false},
		{`role == "edge"`, true},
		{`role=='edge'`, true},
		{`role == "core"`, false},
		{`role != "core"`, true},
		{`role != "edge"`, false},
		{`absent != "edge"`, true}, // an absent label differs from everything
		{`absent == ""`, false},
		{`empty == ""`, true},
		{"has(role)", true},
		{"has( role )", true},
		{"has(absent)", false},
		{"!has(absent)", true},
		{"!!has(role)", true},
		{`zone in {"a", "b"}`, true},
		{`zone in {'b','c'}`, false},
		{`zone in {}`, false},
		{`zone in {"a",}`, true},
		{`absent in {"a"}`, false},
		{`zone not in {"a"}`, false},
		{`zone not   in {"b"}`, true},
		{`absent not in {"a"}`, true},
		{`projectcalico.org/rack contains "-1"`, true},
		{`projectcalico.org/rack starts with "r-"`, true},
		{`projectcalico.org/rack starts  with "12"`, false},
		{`projectcalico.org/rack ends with "12"`, true},
		{`absent contains ""`, false},
		{`absent starts with ""`, false},
		{`absent ends with ""`, false},
		{`role == "edge" && zone == "b"`, false},
		{`role == "edge" || zone == "b"`, true},
		{`zone == "b" && role == "x" || has(role)`, true}, // && binds tighter
		{`zone == "b" && (role == "x" || has(role))`, false},
		{`!(zone == "b" || has(absent))`, true},
		{`!has(role) || has(zone)`, true}, // ! binds tightest
		{`has(all)`, false},
		{`all == "x"`, false}, // words of the language are labels too
		{`in in {"in"}`, false},
	} {
		s, err := ParseSelector(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		if got := s.Matches(edge); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.text, got, tt.want)
		}
	}
}

func TestString(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "all()",
		" all( ) ":                       "all()",
		"role=='x'":                      `role == "x"`,
		`role == 'say "x"'`:              `role == 'say "x"'`,
		`a in {"z",'b', "z"}`:            `a in {"b", "z"}`,
		`a not  in {}`:                   `a not in {}`,
		`((has(a)))&&(has(b)||has(c))`:   `has(a) && (has(b) || has(c))`,
		`!(has(a)&&has(b))||(!(!all()))`: `!(has(a) && has(b)) || !!all()`,
		`a starts  with "x"`:             `a starts with "x"`,
	} {
		s, err := ParseSelector(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := s.String(); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		`role = "x"`:                     `character 6: expected ==, !=, in, not in, contains, starts with or ends with after label "role", found "= \"x\""`,
		`role`:                           `character 5: expected ==, !=, in, not in, contains, starts with or ends with after label "role", found the end`,
		`role == x`:                      `character 9: expected a string in quotes, found "x"`,
		`role == "x`:                     `character 9: the string that starts here has no closing quote`,
		`role == "x" &&`:                 `character 15: expected a label, has(label), all(), ! or (, found the end`,
		`role == "x" zone == "y"`:        `character 13: expected &&, || or the end, found "zone == \"y\""`,
		`(has(a)`:                        `character 8: expected &&, || or ), found the end`,
		`has(a))`:                        `character 7: expected &&, || or the end, found ")"`,
		`has()`:                          `character 5: expected a label, has(label), all(), ! or (, found ")"`,
		`has("a")`:                       `character 5: expected a label, has(label), all(), ! or (, found "\"a\")"`,
		`all(x)`:                         `character 5: expected ), found "x)"`,
		`global()`:                       `character 1: no function is called "global" here; there are all() and has(label)`,
		`a in "x"`:                       `character 6: expected {, found "\"x\""`,
		`a in {"x" "y"}`:                 `character 11: expected , or }, found "\"y\"}"`,
		`a in {"x"`:                      `character 10: expected , or }, found the end`,
		`a not "x"`:                      `character 3: expected ==, !=, in, not in, contains, starts with or ends with after label "a", found "not \"x\""`,
		`a starts "x"`:                   `character 3: expected ==, !=, in, not in, contains, starts with or ends with after label "a", found "starts \"x\""`,
		`a starts in {"x"}`:              `character 3: expected ==, !=, in, not in, contains, starts with or ends with after label "a", found "starts in {\"x\"}"`,
		`ä == "x"`:                       `character 1: expected a label, has(label), all(), ! or (, found "ä == \"x\""`,
		strings.Repeat("a", 513):         `character 1: a label has at most 512 characters`,
		strings.Repeat("(", 10_000_000):  `character 201: more than 200 levels of ! and parentheses`,
		strings.Repeat("!", 300) + "a()": `character 201: more than 200 levels of ! and parentheses`,
	} {
		_, err := ParseSelector(text)
		if err == nil || err.Error() != want {
			t.Errorf("%.40s: got %v, want %s", text, err, want)
		}
	}
}

// FuzzParseSelector checks that no text makes the parser panic, and that
// printing what was parsed and parsing it again changes nothing.
func FuzzParseSelector(f *testing.F) {
	for _, seed := range []string{
		"", "all()", `a == "b" && !(has(c) || d in {"e", 'f'})`, `a not in {} || b starts with ""`,
		`x contains 'a"b'`, "!!!has(a)", "((", `a == "`, "has(a) &&", "global()",
	} {
		f.Add(seed, "a", "b")
	}
	f.Fuzz(func(t *testing.T, text, label, value string) {
		s, err := ParseSelector(text)
		if err != nil {
			return
		}
		canonical := s.String()
		again, err := ParseSelector(canonical)
		if err != nil {
			t.Fatalf("%q printed as %q, which does not parse: %v", text, canonical, err)
		}
		if got := again.String(); got != canonical {
			t.Fatalf("%q printed as %q, then as %q", text, canonical, got)
		}
		for _, labels := range []map[string]string{nil, {label: value}, {"a": value}, {"a": "b", label: ""}} {
			if s.Matches(labels) != again.Matches(labels) {
				t.Fatalf("%q and %q differ on %v", text, canonical, labels)
			}
		}
	})
}
