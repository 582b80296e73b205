// Package golden holds text that a test makes against a file. With -update, a
// flag of every test that uses it, the file is written instead. It decides nothing
// of what the text is.
package golden

import (
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the files that tests hold text against")

// Updating says whether files are to be written: for tests that have a file of
// another form.
func Updating() bool { return *update }

// Check fails the test if the text is not the file's. A test that has failed
// already writes nothing.
func Check(t testing.TB, path, text string) {
	t.Helper()
	if *update && !t.Failed() {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s differs (-want +got); if it should, run the test with -update:\n%s", path, diff)
	}
}
