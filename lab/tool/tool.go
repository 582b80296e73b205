// Package tool holds the small programs that every pod and node of a lab finds
// in its PATH: a web server, wget, ping, probe and load. They are links to one
// executable, which picks by the name it was called with, so a lab needs no
// images and no programs of the host.
//
// It knows nothing about labs: everything is told by arguments and environment.
package tool

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/pflag"
)

// Exit codes. Distinct ones let scripts tell a refusal from silence.
const (
	exitOK      = 0
	exitFailed  = 1
	exitTimeout = 2
	exitUsage   = 64
)

// program runs with its arguments, without its own name, and returns its exit
// code.
type program func(args []string, out, errs io.Writer) int

var programs = map[string]program{
	"web":   webMain,
	"wget":  wgetMain,
	"ping":  pingMain,
	"probe": probeMain,
	"load":  loadMain,
}

// Names lists the programs.
func Names() []string {
	var names []string
	for name := range programs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Run runs the named program and returns its exit code; found is false when
// there is no such program.
func Run(name string, args []string, out, errs io.Writer) (code int, found bool) {
	p, ok := programs[name]
	if !ok {
		return 0, false
	}
	return p(args, out, errs), true
}

// parse reads flags. If it is done is true the program ends with the code: help
// was shown, or the arguments are wrong.
func parse(flags *pflag.FlagSet, usage string, args []string, out, errs io.Writer) (code int, done bool) {
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprintf(out, "usage: %s\n\n%s", usage, flags.FlagUsages())
		return exitOK, true
	case err != nil:
		fmt.Fprintf(errs, "%s: %v\nusage: %s\n", flags.Name(), err, usage)
		return exitUsage, true
	}
	return 0, false
}

func misuse(flags *pflag.FlagSet, usage, problem string, errs io.Writer) int {
	fmt.Fprintf(errs, "%s: %s\nusage: %s\n", flags.Name(), problem, usage)
	return exitUsage
}
