package client

import (
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// header is what the client itself has to know of the configuration.
type header struct{ cniVersion, socket string }

// parseHeader reads it. What it need not know it passes over, without looking
// whether that is right: the agent does. It is false for what is not an object
// of JSON.
func parseHeader(config []byte) (h header, ok bool) {
	s := scanner{rest: config}
	if !s.take('{') {
		return h, false
	}
	for first := true; !s.take('}'); first = false {
		if !first && !s.take(',') {
			return h, false
		}
		key, ok := s.text()
		if !ok || !s.take(':') {
			return h, false
		}
		value, isText := s.text()
		switch {
		case !isText && !s.skip():
			return h, false
		case key == "cniVersion":
			h.cniVersion = value
		case key == "socket":
			h.socket = value
		}
	}
	s.space()
	return h, len(s.rest) == 0
}

// scanner goes through JSON (RFC 8259).
type scanner struct{ rest []byte }

func (s *scanner) space() {
	for len(s.rest) > 0 && (s.rest[0] == ' ' || s.rest[0] == '\t' || s.rest[0] == '\n' || s.rest[0] == '\r') {
		s.rest = s.rest[1:]
	}
}

// take passes over one character if it is the next.
func (s *scanner) take(c byte) bool {
	s.space()
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// skip passes over a value that is no string.
func (s *scanner) skip() bool {
	depth := 0
	for len(s.rest) > 0 {
		switch c := s.rest[0]; {
		case c == '"':
			if _, ok := s.text(); !ok {
				return false
			}
			continue
		case c == '{' || c == '[':
			depth++
		case depth == 0 && (c == ',' || c == '}'):
			return true
		case c == '}' || c == ']':
			depth--
		}
		s.rest = s.rest[1:]
	}
	return false
}

// text reads a string, if one is next.
func (s *scanner) text() (string, bool) {
	s.space()
	if len(s.rest) == 0 || s.rest[0] != '"' {
		return "", false
	}
	var out []byte
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; c {
		case '"':
			s.rest = s.rest[i+1:]
			return string(out), true
		case '\\':
			r, size, ok := escaped(s.rest[i:])
			if !ok {
				return "", false
			}
			out = utf8.AppendRune(out, r)
			i += size - 1
		default:
			out = append(out, c)
		}
	}
	return "", false
}

// escaped reads the escape sequence at the beginning of b.
func escaped(b []byte) (r rune, size int, ok bool) {
	if len(b) < 2 {
		return 0, 0, false
	}
	switch b[1] {
	case '"', '\\', '/':
		return rune(b[1]), 2, true
	case 'b':
		return '\b', 2, true
	case 'f':
		return '\f', 2, true
	case 'n':
		return '\n', 2, true
	case 'r':
		return '\r', 2, true
	case 't':
		return '\t', 2, true
	}
	if r, ok = unit(b); !ok {
		return 0, 0, false
	}
	// Half of a character that takes two; alone it stands for none.
	if low, ok := unit(b[6:]); ok && utf16.DecodeRune(r, low) != utf8.RuneError {
		return utf16.DecodeRune(r, low), 12, true
	}
	return r, 6, true
}

// unit reads \u and four digits.
func unit(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
}

// quote writes a string as JSON.
func quote(text string) string {
	const digits = "0123456789abcdef"
	out := []byte{'"'}
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			out = append(out, '\\', byte(r))
		case r < ' ':
			out = append(out, '\\', 'u', '0', '0', digits[r>>4], digits[r&15])
		default:
			out = utf8.AppendRune(out, r)
		}
	}
	return string(append(out, '"'))
}
