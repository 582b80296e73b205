package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/preflight"
)

// Ranges where nothing is said: the first is that of deploy/twill.yaml, the
// second kubeadm's.
const (
	defaultPodCIDR     = "10.244.0.0/16"
	defaultServiceCIDR = "10.96.0.0/12"
)

type preflightCommand struct {
	pods, services, nodeIPs []string
	nodeName                string
	fix                     bool
	output                  string
}

// preflightReport is what the command prints.
type preflightReport struct {
	Node    string              `json:"node"`
	Results []preflight.Result  `json:"results"`
	Fixed   []preflight.Setting `json:"fixed"`
}

func newPreflight() *cobra.Command {
	var p preflightCommand
	cmd := &cobra.Command{
		Use:   "preflight",
		Short: "Say what of this host would keep it from being a good node",
		Long: `Look at this host, which is to become a node or is one: its name, address and
clock, swap, firewalls, sysctls, the container runtime, other networks, and what
the kernel can do, which is tried in a network namespace made for that. Each
finding has a stable code and a remedy.

Nothing is changed, unless with --fix: it sets the sysctls that findings name,
until the next boot, and prints each.

Exit code 1 if something must be changed; warnings alone are no failure.`,
		Example: `  twill preflight
  twill preflight --pod-cidr 10.244.0.0/16 --service-cidr 10.96.0.0/12
  twill preflight --fix -o wide`,
		Args: cobra.NoArgs,
		RunE: p.run,
	}
	cmd.Flags().StringSliceVar(&p.pods, "pod-cidr", []string{defaultPodCIDR}, "ranges of pod addresses, at most one of a family")
	cmd.Flags().StringSliceVar(&p.services, "service-cidr", []string{defaultServiceCIDR}, "ranges of cluster IPs, at most one of a family")
	cmd.Flags().StringVar(&p.nodeName, "node-name", "", "the node's name (default the host's)")
	cmd.Flags().StringSliceVar(&p.nodeIPs, "node-ip", nil, "the node's addresses (default those of the device with the default route)")
	cmd.Flags().BoolVar(&p.fix, "fix", false, "set the sysctls that findings name")
	cmd.Flags().StringVarP(&p.output, "output", "o", "table", "table, wide (also what is right), json or yaml")
	return cmd
}

func (p *preflightCommand) run(cmd *cobra.Command, _ []string) error {
	options, err := p.options()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return usagef("rules of the kernel can be read by root only: sudo twill preflight")
	}
	report, err := p.look(cmd.Context(), options)
	if err != nil {
		return err
	}
	if p.output == "json" || p.output == "yaml" {
		err = encode(cmd.OutOrStdout(), p.output, report)
	} else {
		printPreflight(cmd.OutOrStdout(), report, p.output == "wide", colours(cmd.OutOrStdout()))
	}
	if err == nil && preflight.Failed(report.Results) {
		return errors.New("this host is no good node yet")
	}
	return err
}

func (p *preflightCommand) options() (o preflight.Options, err error) {
	if forms := []string{"table", "wide", "json", "yaml"}; !slices.Contains(forms, p.output) {
		return o, usagef("--output %q: there are %s", p.output, strings.Join(forms, ", "))
	}
	o = preflight.Options{Root: "/", NodeName: p.nodeName, Resolve: func(ctx context.Context, name string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	}}
	if o.PodCIDRs, err = parseRanges("--pod-cidr", p.pods); err != nil {
		return o, err
	}
	if o.Services, err = parseRanges("--service-cidr", p.services); err != nil {
		return o, err
	}
	for _, text := range p.nodeIPs {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return o, usagef("--node-ip: %v", err)
		}
		o.NodeIPs = append(o.NodeIPs, ip.Unmap())
	}
	return o, nil
}

// look judges the host, and again after what was fixed.
func (p *preflightCommand) look(ctx context.Context, o preflight.Options) (report preflightReport, err error) {
	report.Fixed = []preflight.Setting{}
	for {
		facts, err := preflight.Read(ctx, o)
		if err != nil {
			return report, err
		}
		report.Node, report.Results = facts.Name, preflight.Judge(facts)
		if !p.fix || len(report.Fixed) > 0 {
			return report, nil
		}
		if report.Fixed, err = preflight.Fix(report.Results); err != nil {
			return report, err
		}
		if len(report.Fixed) == 0 {
			report.Fixed = []preflight.Setting{}
			return report, nil
		}
	}
}

func printPreflight(w io.Writer, r preflightReport, wide, coloured bool) {
	paint := func(level string) string {
		colour := map[string]string{preflight.Error: "31", preflight.Warning: "33", "ok": "32"}[level]
		if !coloured {
			return fmt.Sprintf("%-7s", level)
		}
		return fmt.Sprintf("\x1b[%sm%-7s\x1b[0m", colour, level)
	}
	for _, s := range r.Fixed {
		fmt.Fprintf(w, "fixed    %s is %s, until the next boot\n", strings.ReplaceAll(s.Path, "/", "."), s.Value)
	}
	count := map[string]int{}
	for _, result := range r.Results {
		if wide && len(result.Findings) == 0 {
			fmt.Fprintf(w, "%s  %-9s %s\n", paint("ok"), result.Check, printable(result.Seen))
		}
		for _, f := range result.Findings {
			count[f.Level]++
			fmt.Fprintf(w, "%s  %s: %s\n         → %s\n", paint(f.Level), f.Code, printable(f.Detail), f.Remedy)
		}
	}
	verdict := "nothing is wrong"
	if errs, warnings := count[preflight.Error], count[preflight.Warning]; errs+warnings > 0 {
		verdict = counted(errs, "error") + ", " + counted(warnings, "warning")
	}
	fmt.Fprintf(w, "%s: %s, %s\n", printable(r.Node), counted(len(r.Results), "check"), verdict)
}

// counted is a number of things.
func counted(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}
