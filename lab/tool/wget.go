package tool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

const wgetUsage = "wget [-q] [-O FILE] [-T SECONDS] [--spider] URL"

func wgetMain(args []string, out, errs io.Writer) int {
	flags := pflag.NewFlagSet("wget", pflag.ContinueOnError)
	quiet := flags.BoolP("quiet", "q", false, "say nothing but what goes wrong")
	file := flags.StringP("output-document", "O", "-", "write to FILE; - is standard output")
	seconds := flags.Float64P("timeout", "T", 15, "give up after SECONDS")
	spider := flags.Bool("spider", false, "only see whether the page is there")
	if code, done := parse(flags, wgetUsage, args, out, errs); done {
		return code
	}
	if flags.NArg() != 1 {
		return misuse(flags, wgetUsage, "one URL is needed", errs)
	}
	url := flags.Arg(0)
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*seconds*float64(time.Second)))
	defer cancel()
	if !*quiet {
		fmt.Fprintln(errs, "fetching", url)
	}
	code, problem := fetch(ctx, url, *file, *spider, out)
	if problem != "" {
		fmt.Fprintln(errs, "wget:", problem)
	}
	return code
}

func fetch(ctx context.Context, url, file string, spider bool, out io.Writer) (code int, problem string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return exitUsage, err.Error()
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return explain(err, request.URL.Host)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return exitFailed, "the server answered " + response.Status
	}
	if spider {
		return exitOK, ""
	}
	if file != "-" {
		f, err := os.Create(file)
		if err != nil {
			return exitFailed, err.Error()
		}
		defer f.Close()
		out = f
	}
	if _, err := io.Copy(out, response.Body); err != nil {
		return explain(err, request.URL.Host)
	}
	return exitOK, ""
}

// explain turns a network error into an exit code and words.
func explain(err error, host string) (code int, problem string) {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return exitFailed, "bad address: there is no " + dns.Name
		}
		return exitFailed, fmt.Sprintf("bad address: no answer about %s from the name server", dns.Name)
	case errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err):
		return exitTimeout, host + ": timed out"
	case errors.Is(err, syscall.ECONNREFUSED):
		return exitFailed, host + ": connection refused"
	case errors.Is(err, syscall.ECONNRESET):
		return exitFailed, host + ": connection reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return exitFailed, host + ": no route"
	}
	return exitFailed, err.Error()
}
