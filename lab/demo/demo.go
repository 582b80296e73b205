// Package demo tells the story of Twill on a lab of three nodes: pods that reach
// each other, a service, a policy, and two changes under load that lose
// nothing. Each step says what is expected, does it with the commands that a
// user would type, and shows what was seen and how long it took.
//
// It only uses what users have: the lab, its commands and twill's. It decides
// nothing by itself that it does not show.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/twill-net/twill/lab"
)

// Config says how to tell the story.
type Config struct {
	DualStack bool
	// Name is the lab's name; default "demo".
	Name string
	// Executables is as in lab.Config.
	Executables string
	// Kubernetes is as in lab.Config. With it the story is another: the classic
	// exercise as it is typed.
	Kubernetes string
}

// step is one step of the story. run returns what was seen, and an error if
// that is not what was expected.
type step struct {
	title  string
	expect string
	run    func(*story, context.Context) (seen string, err error)
}

// story is what the steps share.
type story struct {
	cfg    lab.Config
	client *lab.Client
	pods   map[string]lab.PodStatus // by name, those that later steps need
	work   string                   // the directory in which commands are typed, if there is one
	out    *narrator
}

// Run tells the story on a lab of its own, which it takes down in any case. An
// error means that something was not as expected; it has been told.
func Run(ctx context.Context, cfg Config, out io.Writer) (err error) {
	if cfg.Name == "" {
		cfg.Name = "demo"
	}
	s := &story{
		cfg:  lab.Config{Name: cfg.Name, Nodes: 3, DualStack: cfg.DualStack, Executables: cfg.Executables, Kubernetes: cfg.Kubernetes},
		pods: map[string]lab.PodStatus{},
		out:  newNarrator(out),
	}
	began := time.Now()
	s.out.title(cfg.DualStack)
	defer func() {
		// Without a client the lab did not come up, and one of that name that
		// was there before is not ours.
		if s.client != nil {
			s.client.Close()
			_, e := lab.Down(cfg.Name)
			err = errors.Join(err, e, os.RemoveAll(s.work))
		}
		s.out.end(time.Since(began), err)
	}()
	told, limit := steps(), stepTimeout
	if cfg.Kubernetes != "" {
		told, limit = kubernetesSteps, clusterPatience
	}
	for i, step := range told {
		if err := s.tell(ctx, i+1, step, limit); err != nil {
			return err
		}
	}
	return nil
}

func steps() []step {
	var all []step
	for _, chapter := range [][]step{podSteps, serviceSteps, policySteps, hitlessSteps} {
		all = append(all, chapter...)
	}
	return all
}

// stepTimeout is more than any step may take.
const stepTimeout = time.Minute

func (s *story) tell(ctx context.Context, number int, st step, limit time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s.out.begin(number, st.title, st.expect)
	began := time.Now()
	seen, err := st.run(s, limited)
	if ctx.Err() != nil {
		err = errors.New("interrupted") // what failed is only a consequence
	}
	s.out.result(seen, time.Since(began), err)
	if err != nil {
		return fmt.Errorf("step %d, %s: %w", number, st.title, err)
	}
	return nil
}

// at executes a command at a place, and returns its output. An error holds what
// the command said.
func (s *story) at(ctx context.Context, place lab.Place, argv ...string) (string, error) {
	cmd, err := s.client.Command(ctx, place, argv...)
	if err != nil {
		return "", err
	}
	return output(cmd, strings.Join(argv, " "))
}

// twill executes twill as a user of the lab would.
func (s *story) twill(ctx context.Context, input string, args ...string) (string, error) {
	executable := filepath.Join(s.client.Config.Executables, "twill")
	cmd := exec.CommandContext(ctx, executable, append([]string{"--lab", s.cfg.Name}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	return output(cmd, "twill "+strings.Join(args, " "))
}

// commandError is a command that ended with another exit code than 0.
type commandError struct {
	command string
	code    int
	said    string
}

func (e *commandError) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", e.command, e.code, e.said)
}

func output(cmd *exec.Cmd, shown string) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return out.String(), &commandError{shown, failed.ExitCode(), strings.TrimSpace(out.String() + errs.String())}
	}
	return out.String(), err
}

// eventually tries until it succeeds, and returns how long that took.
func eventually(ctx context.Context, patience time.Duration, try func() error) (time.Duration, error) {
	began := time.Now()
	for {
		err := try()
		took := time.Since(began)
		if err == nil {
			return took, nil
		}
		if took > patience || ctx.Err() != nil {
			return took, fmt.Errorf("still after %s: %w", patience, err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// colours are used only where somebody looks, and not against NO_COLOR
// (no-color.org).
func colours(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))
}
