package tool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

const probeUsage = "probe [-T SECONDS] tcp|udp HOST:PORT..."

// probeMain tells of each target whether it is open, refused or silent. Over
// UDP only a server that answers can be told from silence.
func probeMain(args []string, out, errs io.Writer) int {
	flags := pflag.NewFlagSet("probe", pflag.ContinueOnError)
	seconds := flags.Float64P("timeout", "T", 1, "wait SECONDS for each target")
	if code, done := parse(flags, probeUsage, args, out, errs); done {
		return code
	}
	if flags.NArg() < 2 {
		return misuse(flags, probeUsage, "a protocol and at least one HOST:PORT are needed", errs)
	}
	network := flags.Arg(0)
	if network != "tcp" && network != "udp" {
		return misuse(flags, probeUsage, fmt.Sprintf("protocol %q: only tcp and udp can be probed", network), errs)
	}
	code := exitOK
	for _, target := range flags.Args()[1:] {
		answer, c := probe(network, target, time.Duration(*seconds*float64(time.Second)))
		fmt.Fprintf(out, "%s %s %s\n", network, target, answer)
		code = max(code, c)
	}
	return code
}

// probe returns "open", "refused", "timeout" or what else is wrong.
func probe(network, target string, patience time.Duration) (answer string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, network, target)
	if err == nil {
		defer c.Close()
		if network == "udp" {
			err = askUDP(ctx, c)
		}
	}
	switch {
	case err == nil:
		return "open", exitOK
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused", exitFailed
	case errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err):
		return "timeout", exitTimeout
	}
	code, problem := explain(err, target)
	return problem, code
}

func askUDP(ctx context.Context, c net.Conn) error {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write([]byte(AskPage)); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 2048))
	return err
}
