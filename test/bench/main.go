// Bench holds Twill to its numbers: it measures attaching pods, the data path,
// policy, services and many nodes at scale, each beside a peer or a bare link in
// the same run, and prints one table of figures, ratios and goals.
//
//	go run ./test/bench [-o table|json] [-save FILE] [-only NAME,...] [-quick] [-v]
//
// All that it measures is in namespaces that it makes itself. It never touches
// the host's network, never fails because a goal is missed, and leaves nothing
// behind. The method is in docs/explanation/performance.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/twill-net/twill/lab"
)

// bench is one run.
type bench struct {
	ctx    context.Context
	quick  bool // few and short rounds: to see that it works, not for figures
	report *report
	self   string // this executable, which its children are too

	executables string // directory of twill, twill-cni and twill-lab; see binaries
	plugins     string // directory of the CNI plugins that are the peer
	scratch     string
	labs        []string
	verbose     bool
}

// benchmarks in the order in which they run.
var benchmarks = []struct {
	name  string
	about string
	run   func(*bench) error
}{
	{"cni", "attach and detach pods", (*bench).cni},
	{"path", "the data path", (*bench).dataPath},
	{"connect", "connections to services", (*bench).connect},
	{"scale", "policy, services and peers at scale, in one planner and kernel", (*bench).scale},
	{"agents", "many nodes with their agents", (*bench).agents},
	{"kubernetes", "agents on a real cluster", (*bench).kubernetes},
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == childWord {
		if err := child(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	b := &bench{report: newReport()}
	format := flag.String("o", "table", "what to print: table or json")
	save := flag.String("save", "", "also write the result as JSON to this file")
	only := flag.String("only", "", "the benchmarks to run, with commas: "+strings.Join(names(), ", "))
	flag.BoolVar(&b.quick, "quick", false, "few and short rounds, and a smaller cluster: figures are not to be trusted")
	flag.BoolVar(&b.verbose, "v", false, "print progress")
	flag.StringVar(&b.executables, "bin", "", "directory of twill, twill-cni and twill-lab (default: build them)")
	flag.StringVar(&b.plugins, "plugins", "/usr/lib/cni", "directory of the bridge and host-local CNI plugins, the peer for attaching pods")
	flag.Parse()
	chosen, err := choose(*only)
	switch {
	case err != nil:
		return err
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q: see -help", flag.Arg(0))
	case *format != "table" && *format != "json":
		return fmt.Errorf("-o %s: write table or json", *format)
	case os.Geteuid() != 0:
		return errors.New("namespaces are made by root: use sudo, or \"make bench\"")
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.scratch, err = os.MkdirTemp("", "twill-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.clear()) }()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	b.ctx = ctx
	// Whoever does not read the table to its end must not keep us from clearing
	// up: a write to nowhere becomes an error.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	for _, m := range benchmarks {
		if !slices.Contains(chosen, m.name) {
			continue
		}
		b.say("%s: %s", m.name, m.about)
		b.report.begin(m.name)
		if err := m.run(b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		b.report.end()
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
	}
	b.report.Quick = b.quick
	if *save != "" {
		if err := b.report.save(*save); err != nil {
			return err
		}
	}
	if *format == "json" {
		return b.report.writeJSON(os.Stdout)
	}
	return b.report.writeTable(os.Stdout)
}

func names() []string {
	var all []string
	for _, m := range benchmarks {
		all = append(all, m.name)
	}
	return all
}

func choose(only string) ([]string, error) {
	if only == "" {
		return names(), nil
	}
	chosen := strings.Split(only, ",")
	for _, name := range chosen {
		if !slices.Contains(names(), name) {
			return nil, fmt.Errorf("-only %s: there is no benchmark %q; there are %s", only, name, strings.Join(names(), ", "))
		}
	}
	return chosen, nil
}

func (b *bench) say(format string, args ...any) {
	if b.verbose {
		fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
	}
}

// pick is the full value, or the quick one.
func pick[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

// binaries are the executables of this tree.
func (b *bench) binaries() (string, error) {
	if b.executables != "" {
		return filepath.Abs(b.executables)
	}
	dir := filepath.Join(b.scratch, "bin")
	cmd := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "github.com/twill-net/twill/cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	b.executables = dir
	return dir, nil
}

// lab brings a lab up, which is gone when the run ends.
func (b *bench) lab(config lab.Config) (*lab.Client, error) {
	dir, err := b.binaries()
	if err != nil {
		return nil, err
	}
	config.Executables = dir
	config.Name = fmt.Sprintf("bench%d-%d", os.Getpid(), len(b.labs))
	b.labs = append(b.labs, config.Name)
	if err := lab.Up(b.ctx, config, func(string) {}); err != nil {
		return nil, err
	}
	return lab.Dial(config.Name)
}

func (b *bench) clear() error {
	var errs []error
	for _, name := range b.labs {
		if _, err := lab.Down(name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(b.scratch))...)
}
