package selector

import (
	"fmt"
	"slices"
	"strings"
)

const (
	// maxLabel is the longest label name that the language knows.
	maxLabel = 512
	// maxNesting bounds recursion, so that no text can exhaust the stack.
	maxNesting = 200
)

// ParseSelector parses an expression; text without any is all(). The error
// says what was expected and at which character (counted in bytes from 1).
func ParseSelector(text string) (Selector, error) {
	p := parser{text: text}
	p.space()
	if p.rest() == "" {
		return Selector{}, nil
	}
	root, err := p.or()
	if err != nil {
		return Selector{}, err
	}
	if p.rest() != "" {
		return Selector{}, p.expected("&&, || or the end")
	}
	if _, ok := root.(all); ok {
		root = nil
	}
	return Selector{root: root}, nil
}

// parser is a recursive descent over the text. Every method leaves it behind
// the space that follows what it read.
type parser struct {
	text    string
	at      int
	nesting int
}

func (p *parser) rest() string { return p.text[p.at:] }

func (p *parser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

// accept skips a symbol if it comes next.
func (p *parser) accept(symbol string) bool {
	if !strings.HasPrefix(p.rest(), symbol) {
		return false
	}
	p.at += len(symbol)
	p.space()
	return true
}

// acceptWords skips the words if all of them come next.
func (p *parser) acceptWords(words ...string) bool {
	start := p.at
	for _, word := range words {
		rest, ok := strings.CutPrefix(p.rest(), word)
		if !ok || rest != "" && isLabelByte(rest[0]) {
			p.at = start
			return false
		}
		p.accept(word)
	}
	return true
}

func (p *parser) expected(what string) error {
	found := "the end"
	if rest := p.rest(); rest != "" {
		if len(rest) > 20 {
			rest = rest[:20] + "..."
		}
		found = fmt.Sprintf("%q", rest)
	}
	return fmt.Errorf("character %d: expected %s, found %s", p.at+1, what, found)
}

func (p *parser) or() (node, error) {
	return p.joined("||", p.and, func(operands []node) node { return or{operands} })
}

func (p *parser) and() (node, error) {
	return p.joined("&&", p.unary, func(operands []node) node { return and{operands} })
}

func (p *parser) joined(operator string, operand func() (node, error), join func([]node) node) (node, error) {
	first, err := operand()
	if err != nil {
		return nil, err
	}
	operands := []node{first}
	for p.accept(operator) {
		next, err := operand()
		if err != nil {
			return nil, err
		}
		operands = append(operands, next)
	}
	if len(operands) == 1 {
		return first, nil
	}
	return join(operands), nil
}

func (p *parser) unary() (node, error) {
	if p.nesting++; p.nesting > maxNesting {
		return nil, fmt.Errorf("character %d: more than %d levels of ! and parentheses", p.at+1, maxNesting)
	}
	defer func() { p.nesting-- }()
	switch {
	case p.accept("!"):
		operand, err := p.unary()
		if err != nil {
			return nil, err
		}
		return not{operand}, nil
	case p.accept("("):
		inner, err := p.or()
		if err != nil {
			return nil, err
		}
		if !p.accept(")") {
			return nil, p.expected("&&, || or )")
		}
		return inner, nil
	}
	return p.atom()
}

// atom reads a function call or a comparison, both of which start with a word.
func (p *parser) atom() (node, error) {
	start := p.at
	word, err := p.label()
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(p.rest(), "(") {
		return p.comparison(word)
	}
	switch word {
	case "all":
		p.accept("(")
		if !p.accept(")") {
			return nil, p.expected(")")
		}
		return all{}, nil
	case "has":
		p.accept("(")
		label, err := p.label()
		if err != nil {
			return nil, err
		}
		if !p.accept(")") {
			return nil, p.expected(")")
		}
		return has{label}, nil
	}
	return nil, fmt.Errorf("character %d: no function is called %q here; there are all() and has(label)", start+1, word)
}

func (p *parser) comparison(label string) (node, error) {
	for _, symbol := range []string{equals, differs} {
		if p.accept(symbol) {
			return p.compared(label, symbol)
		}
	}
	switch {
	case p.acceptWords("contains"):
		return p.compared(label, contains)
	case p.acceptWords("starts", "with"):
		return p.compared(label, startsWith)
	case p.acceptWords("ends", "with"):
		return p.compared(label, endsWith)
	case p.acceptWords("in"):
		return p.set(label, false)
	case p.acceptWords("not", "in"):
		return p.set(label, true)
	}
	return nil, p.expected(fmt.Sprintf("==, !=, in, not in, contains, starts with or ends with after label %q", label))
}

func (p *parser) compared(label, operator string) (node, error) {
	value, err := p.quoted()
	if err != nil {
		return nil, err
	}
	return test{label, operator, value}, nil
}

// set reads {"a", "b"}; it may be empty, and may end with a comma.
func (p *parser) set(label string, negated bool) (node, error) {
	if !p.accept("{") {
		return nil, p.expected("{")
	}
	var values []string
	for !p.accept("}") {
		value, err := p.quoted()
		if err != nil {
			return nil, err
		}
		values = append(values, value)
		if !p.accept(",") && !strings.HasPrefix(p.rest(), "}") {
			return nil, p.expected(", or }")
		}
	}
	slices.Sort(values)
	return member{label, slices.Compact(values), negated}, nil
}

// quoted reads a string in either kind of quotes. There are no escapes.
func (p *parser) quoted() (string, error) {
	rest := p.rest()
	if rest == "" || rest[0] != '"' && rest[0] != '\'' {
		return "", p.expected("a string in quotes")
	}
	end := strings.IndexByte(rest[1:], rest[0])
	if end < 0 {
		return "", fmt.Errorf("character %d: the string that starts here has no closing quote", p.at+1)
	}
	p.at += end + 2
	p.space()
	return rest[1 : end+1], nil
}

func (p *parser) label() (string, error) {
	rest := p.rest()
	n := 0
	for n < len(rest) && isLabelByte(rest[n]) {
		n++
	}
	switch {
	case n == 0:
		return "", p.expected("a label, has(label), all(), ! or (")
	case n > maxLabel:
		return "", fmt.Errorf("character %d: a label has at most %d characters", p.at+1, maxLabel)
	}
	p.at += n
	p.space()
	return rest[:n], nil
}

func isLabelByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '_' || c == '.' || c == '/' || c == '-'
}
