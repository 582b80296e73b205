package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const junit = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="5">
  <testsuite name="e2e">
    <testcase name="[SynchronizedBeforeSuite]" status="passed" time="0.1"></testcase>
    <testcase name="[It] [sig-network] DNS should answer" status="passed" time="12.4"></testcase>
    <testcase name="[It] [sig-network] Services should serve" status="failed" time="30">
      <failure message="no answer within 30s&#xA;more" type="failed">there</failure>
    </testcase>
    <testcase name="[It] [sig-network] Services should end" status="timedout" time="60"></testcase>
    <testcase name="[It] [sig-node] other" status="skipped" time="0"></testcase>
    <testcase name="[SynchronizedAfterSuite]" status="panicked" time="0.1"><error message="oops" type="panicked"></error></testcase>
  </testsuite>
</testsuites>`

func TestTell(t *testing.T) {
	path := filepath.Join(t.TempDir(), "junit.xml")
	if err := os.WriteFile(path, []byte(junit), 0o600); err != nil {
		t.Fatal(err)
	}
	specs, err := readJUnit(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if failed := tell(&out, specs); failed != 3 {
		t.Errorf("%d failed, want 3", failed)
	}
	want := `RESULT    SECONDS  TEST
passed    12       [sig-network] DNS should answer
failed    30       [sig-network] Services should serve
                     no answer within 30s
timedout  60       [sig-network] Services should end
                     it did not say why
panicked  0        [SynchronizedAfterSuite]
                     oops
1 of 4 passed
`
	if out.String() != want {
		t.Errorf("the table is\n%swant\n%s", out.String(), want)
	}
}

func TestNothingRan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "junit.xml")
	if err := os.WriteFile(path, []byte(`<testsuites><testsuite></testsuite></testsuites>`), 0o600); err != nil {
		t.Fatal(err)
	}
	if specs, err := readJUnit(path); err == nil {
		t.Errorf("%d tests of an empty file, want an error", len(specs))
	}
}

func TestProgress(t *testing.T) {
	var said []string
	p := &progress{log: io.Discard, say: func(line string) { said = append(said, line) }}
	for _, part := range []string{"[sig-network] DNS should ans", "wer\n/dns.go:1\n  STEP: ask\n• [1.", "5 seconds]\n", "• [FAILED] [2.0 seconds]\n"} {
		if _, err := p.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	want := "  1 [1.5 seconds] [sig-network] DNS should answer\n  2 [FAILED] [2.0 seconds] [sig-network] DNS should answer"
	if got := strings.Join(said, "\n"); got != want {
		t.Errorf("said\n%s\nwant\n%s", got, want)
	}
}
