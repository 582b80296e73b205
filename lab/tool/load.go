package tool

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/twill-net/twill/lab/load"
)

const loadUsage = "load [--rate N] [--for TIME] [--patience TIME] [-o json] http|udp|stream://HOST[:PORT]..."

// loadMain runs until the time is over or SIGINT or SIGTERM comes, and then
// tells the result: 1 if any request was lost.
func loadMain(args []string, out, errs io.Writer) int {
	flags := pflag.NewFlagSet("load", pflag.ContinueOnError)
	rate := flags.Int("rate", 1000, "requests a second to each target")
	period := flags.Duration("for", 10*time.Second, "how long; 0: until interrupted")
	patience := flags.Duration("patience", load.Patience, "how long an answer may take before it counts as lost")
	output := flags.StringP("output", "o", "", "json for programs")
	if code, done := parse(flags, loadUsage, args, out, errs); done {
		return code
	}
	if flags.NArg() == 0 {
		return misuse(flags, loadUsage, "at least one target is needed", errs)
	}
	if *output != "" && *output != "json" {
		return misuse(flags, loadUsage, fmt.Sprintf("output %q: only json is known", *output), errs)
	}
	var targets []load.Target
	for _, text := range flags.Args() {
		target, err := load.ParseTarget(text)
		if err != nil {
			return misuse(flags, loadUsage, err.Error(), errs)
		}
		targets = append(targets, target)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if *period > 0 {
		ctx, cancel = context.WithTimeout(ctx, *period)
		defer cancel()
	}
	results, err := load.Run(ctx, targets, *rate, *patience)
	if err != nil {
		fmt.Fprintln(errs, "load:", err)
		return exitFailed
	}
	return tell(results, *output == "json", out, errs)
}

func tell(results []load.Result, asJSON bool, out, errs io.Writer) int {
	code := exitOK
	for _, r := range results {
		if r.Lost > 0 || r.Sent == 0 {
			code = exitFailed
		}
		if !asJSON {
			fmt.Fprintln(out, r)
		}
	}
	if asJSON {
		if err := json.NewEncoder(out).Encode(results); err != nil {
			fmt.Fprintln(errs, "load:", err)
			return exitFailed
		}
	}
	return code
}
