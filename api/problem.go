package api

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a manifest.
type Problem struct {
	Document int    // counted from 1
	Item     int    // place in a List, counted from 1; 0 when not in one
	Object   string // kind, namespace and name, as far as they are known
	Field    string // path, such as "spec.ports[0].port"; may be empty
	Reason   string
}

// String is the problem in one line.
func (p Problem) String() string {
	words := []string{place{p.Document, p.Item}.String()}
	if p.Object != "" {
		words[0] += " (" + p.Object + ")"
	}
	if p.Field != "" {
		words = append(words, p.Field)
	}
	return strings.Join(append(words, p.Reason), ": ")
}

func (p place) String() string {
	if p.item == 0 {
		return fmt.Sprintf("document %d", p.document)
	}
	return fmt.Sprintf("document %d item %d", p.document, p.item)
}

// ManifestError is everything that is wrong with a manifest.
type ManifestError struct {
	Problems []Problem // at least one, in the manifest's order
}

// Error has one line for each problem.
func (e *ManifestError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}
