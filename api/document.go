package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// document is the text of one document of a manifest.
type document struct {
	text []byte
	line int // of the manifest, where the text starts; counted from 1
}

// toJSON converts the document, and names the fields that it has twice.
func (d document) toJSON() (raw []byte, duplicates []string, err error) {
	if json.Valid(d.text) {
		return d.text, nil, nil // the strict decoder finds duplicates
	}
	raw, err = yaml.YAMLToJSONStrict(d.text)
	if err == nil {
		return raw, nil, nil
	}
	if duplicates = duplicateKeys(d.text); len(duplicates) > 0 {
		if raw, lenient := yaml.YAMLToJSON(d.text); lenient == nil {
			return raw, duplicates, nil
		}
	}
	return nil, nil, errors.New(d.yamlError(err))
}

var lineNumber = regexp.MustCompile(`\bline (\d+)`)

// yamlError is the parser's message in one line, with the manifest's line
// numbers instead of the document's.
func (d document) yamlError(err error) string {
	text := strings.ReplaceAll(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "), "\n ", "")
	text = lineNumber.ReplaceAllStringFunc(text, func(match string) string {
		n, _ := strconv.Atoi(strings.TrimPrefix(match, "line "))
		return fmt.Sprintf("line %d", n+d.line-1)
	})
	return "not valid YAML: " + strings.TrimPrefix(text, "yaml: ")
}

// splitDocuments splits at YAML's document markers (YAML 1.2 §9.1.2), and a
// document of several JSON values into these. Documents without content are
// left out.
func splitDocuments(manifest []byte) []document {
	manifest = bytes.TrimPrefix(manifest, []byte("\ufeff"))
	var docs []document
	current := document{line: 1}
	line := 0
	for text := range bytes.Lines(manifest) {
		line++
		marker := bytes.HasPrefix(text, []byte("---")) || bytes.HasPrefix(text, []byte("..."))
		if marker && (len(text) == 3 || strings.IndexByte(" \t\r\n", text[3]) >= 0) {
			docs = append(docs, current.values()...)
			// What follows on the marker's line belongs to the document.
			current = document{line: line}
			text = text[3:]
		}
		current.text = append(current.text, text...)
	}
	return append(docs, current.values()...)
}

// values are the JSON values of which the document consists if it is JSON, else
// the document itself, or none if it is empty.
func (d document) values() []document {
	if d.isEmpty() {
		return nil
	}
	var values []document
	dec := json.NewDecoder(bytes.NewReader(d.text))
	for dec.More() {
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return []document{d}
		}
		before := d.text[:int(dec.InputOffset())-len(value)]
		values = append(values, document{value, d.line + bytes.Count(before, []byte("\n"))})
	}
	return values
}

func (d document) isEmpty() bool {
	for text := range bytes.Lines(d.text) {
		text = bytes.TrimSpace(text)
		if len(text) > 0 && text[0] != '#' && text[0] != '%' {
			return false
		}
	}
	return true
}
