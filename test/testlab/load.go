package testlab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/load"
)

// Load sends rate requests a second to each target, such as
// "stream://10.1.0.1:80", until stop is called; what is not answered within
// patience is lost. A program of the lab's sends them: the race detector of the
// tests would be a load of its own.
func (l *Lab) Load(t *testing.T, from lab.Place, rate int, patience time.Duration, targets ...string) (stop func() []load.Result) {
	t.Helper()
	return l.LoadBy(t, from, nil, rate, patience, targets...)
}

// LoadBy is Load by a command that executes another, such as nsenter.
func (l *Lab) LoadBy(t *testing.T, from lab.Place, by []string, rate int, patience time.Duration, targets ...string) (stop func() []load.Result) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	argv := append(by[:len(by):len(by)], "load", "--rate", strconv.Itoa(rate), "--for", "0", "--patience", patience.String(), "-o", "json")
	cmd, err := l.Command(ctx, from, append(argv, targets...)...)
	if err != nil {
		t.Fatal(err)
	}
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() []load.Result {
		t.Helper()
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatalf("load: %v: %s", err, problem.String())
		}
		err := cmd.Wait()
		cancel()
		var failed *exec.ExitError // its exit code tells that requests were lost
		if err != nil && !errors.As(err, &failed) {
			t.Fatal(err)
		}
		var results []load.Result
		if err := json.Unmarshal(out.Bytes(), &results); err != nil {
			t.Fatalf("load: %v: %s", err, strings.TrimSpace(problem.String()))
		}
		return results
	}
}
