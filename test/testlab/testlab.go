// Package testlab gives tests a lab: it builds the executables once, brings a
// lab up under a name of its own, takes it down however the test ends, and then
// looks whether anything of it is left on the machine.
//
// It never touches a lab that it has not made, and knows nothing about what is
// tested.
package testlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
)

// Lab is a lab that is up. Its methods may be called concurrently.
type Lab struct {
	*lab.Client
}

// machine is what this process has made and must not leave behind.
var machine struct {
	mu          sync.Mutex
	executables string
	labs        map[string]bool
	made        int
}

// Main is what TestMain has to call in packages that use labs. It also cleans up
// when the tests are interrupted.
func Main(m interface{ Run() int }) {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		fmt.Fprintln(os.Stderr, "interrupted: taking labs down")
		clear()
		os.Exit(130)
	}()
	code := m.Run()
	clear()
	os.Exit(code)
}

// clear takes all labs down and removes the executables. It keeps the lock, so
// that nothing is made after it.
var clear = sync.OnceFunc(func() {
	machine.mu.Lock()
	for name := range machine.labs {
		if _, err := lab.Down(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if machine.executables != "" {
		os.RemoveAll(machine.executables)
	}
})

// build makes the executables and returns their directory.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "twill-testlab-")
	if err != nil {
		return "", err
	}
	machine.mu.Lock()
	machine.executables = dir
	machine.mu.Unlock()
	cmd := exec.Command("go", "build", "-o", dir+"/", "github.com/twill-net/twill/cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
})

// buildImage makes the image of which deploy/twill.yaml speaks, for this machine.
var buildImage = sync.OnceValue(func() error {
	cmd := exec.Command("go", "run", "github.com/twill-net/twill/hack/image",
		"-version", "dev", "-arch", runtime.GOARCH, "-o", filepath.Join(machine.executables, "twill-image.tar"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the image: %w\n%s", err, out)
	}
	return nil
})

// endTime is kept before the tests' deadline, at which their process is ended
// without cleaning up.
const endTime = 10 * time.Second

var beforeDeadline sync.Once

// Up brings a lab up that is gone without a trace when the test ends. Name and
// Executables of cfg are set. The test is skipped if it can't have a lab.
func Up(t *testing.T, cfg lab.Config) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a lab needs root, to make namespaces")
	}
	if deadline, ok := t.Deadline(); ok {
		beforeDeadline.Do(func() { time.AfterFunc(time.Until(deadline)-endTime, clear) })
	}
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Kubernetes != "" {
		if err := buildImage(); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Executables, cfg.Name = dir, register()
	t.Cleanup(func() { forget(cfg.Name) })
	traces := &traces{name: cfg.Name}
	traces.before(t)
	t.Cleanup(func() { traces.after(t) })
	t.Cleanup(func() {
		if _, err := lab.Down(cfg.Name); err != nil {
			t.Error(err)
		}
	})
	if err := lab.Up(t.Context(), cfg, func(string) {}); err != nil {
		t.Fatal(err)
	}
	client, err := lab.Dial(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	l := &Lab{client}
	traces.remember(t, l)
	return l
}

func register() (name string) {
	machine.mu.Lock()
	defer machine.mu.Unlock()
	if machine.labs == nil {
		machine.labs = map[string]bool{}
	}
	machine.made++
	name = fmt.Sprintf("test-%d-%d", os.Getpid(), machine.made)
	machine.labs[name] = true
	return name
}

func forget(name string) {
	machine.mu.Lock()
	defer machine.mu.Unlock()
	delete(machine.labs, name)
}

// Task stands for a place of the lab, to be given to space.In.
func (l *Lab) Task(t *testing.T, at lab.Place) string {
	t.Helper()
	entrance, err := l.Enter(at)
	if err != nil {
		t.Fatal(err)
	}
	return entrance.Task
}

// commandPatience bounds a command, so that one that hangs is a failure with
// its name on it.
const commandPatience = 30 * time.Second

// Twill calls the twill executable for this lab and returns what it prints on
// its standard output; what it prints on the other one is in the error.
func (l *Lab) Twill(ctx context.Context, input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(l.Config.Executables, "twill"), append([]string{"--lab", l.Config.Name}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	return output(cmd)
}

// At executes a command at a place of the lab.
func (l *Lab) At(ctx context.Context, place lab.Place, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandPatience)
	defer cancel()
	cmd, err := l.Command(ctx, place, argv...)
	if err != nil {
		return "", err
	}
	return output(cmd)
}

func output(cmd *exec.Cmd) (string, error) {
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	err := cmd.Run()
	if err != nil {
		words := cmd.Args[1:]
		if text := strings.TrimSpace(problem.String()); text != "" {
			err = errors.New(text)
		}
		err = fmt.Errorf("%s: %w", strings.Join(words, " "), err)
	}
	return out.String(), err
}
