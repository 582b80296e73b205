package deploy

import (
	"bytes"
	"testing"
)

// TestManifestFitsOnAFewScreens: whoever installs it can read it.
func TestManifestFitsOnAFewScreens(t *testing.T) {
	if lines := bytes.Count(Manifest(), []byte("\n")); lines > 300 {
		t.Errorf("twill.yaml has %d lines", lines)
	}
}
