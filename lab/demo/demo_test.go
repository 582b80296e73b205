package demo

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/api"
)

func TestNarration(t *testing.T) {
	var out strings.Builder
	n := newNarrator(&out)
	n.title(false)
	n.begin(1, "One", "this\nand that")
	n.result("this\nand that\n", 1234*time.Millisecond, nil)
	n.begin(2, "Two", "all well")
	n.result("", 0, errors.New("it is not"))
	n.end(2*time.Second, errors.New("it is not"))
	want := `Twill on three nodes, which are network namespaces of this machine (IPv4)

 1  One
    expected  this
              and that
    seen      this
              and that
    ok        1.23 s

 2  Two
    expected  all well
    differs   it is not

The story ended early, after 2.0 s.
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestManifestsAreValid(t *testing.T) {
	for _, text := range []string{serviceManifest, policyManifest} {
		if _, err := api.Decode([]byte(text), "default"); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
}

func TestOutput(t *testing.T) {
	out, err := output(exec.Command("sh", "-c", "echo said; echo complained >&2; exit 3"), "it")
	var failed *commandError
	if out != "said\n" || !errors.As(err, &failed) || failed.code != 3 || failed.said != "said\ncomplained" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := output(exec.Command("no-such-command"), "it"); err == nil || errors.As(err, &failed) {
		t.Errorf("a command that is not there: %v", err)
	}
}

func TestEventually(t *testing.T) {
	tries := 0
	_, err := eventually(t.Context(), time.Minute, func() error {
		if tries++; tries < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%v after %d tries", err, tries)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := eventually(ctx, time.Minute, func() error { return errors.New("never") }); err == nil || !strings.Contains(err.Error(), "never") {
		t.Errorf("interrupted: %v", err)
	}
}
