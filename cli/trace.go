package cli

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/twill-net/twill/trace"
)

func newTrace(s *Session) *cobra.Command {
	var namespace, output string
	var probe bool
	cmd := &cobra.Command{
		Use:   "trace FROM TO:PORT[/PROTOCOL]",
		Short: "Explain one connection: service, policies on both sides, route, verdict",
		Long: `Explain one connection from intent: which service translates it and to which
endpoints, which policies decide on both sides and by which rule, which way the
packets take between nodes, and what comes of it.

FROM is a pod (NAME or NAMESPACE/NAME), node/NAME or an address. TO is a
service or pod (a bare name is a service's if there is one), svc/NAME,
pod/NAME, node/NAME, a service's DNS name, or an address. PORT is a number, or
the name that the service or pod has for it. PROTOCOL is tcp, udp or sctp;
default tcp, or the one that the name is for.

With --probe a real packet is sent as well, from the pod in the lab on this
machine, and the command fails if it does not meet with the verdict.`,
		Example: `  twill trace -n policy-demo access nginx:80
  twill trace default/shell node/node01:30080
  twill trace -n policy-demo access pod/nginx:http
  twill trace 172.16.10.200 172.16.10.10:30080
  twill trace -n policy-demo --probe access nginx:80`,
		Args: takes(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := parseQuery(namespace, args[0], args[1])
			if err != nil {
				return err
			}
			st, err := s.OpenStore(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			snapshot, err := trace.Load(cmd.Context(), st)
			if err != nil {
				return err
			}
			report, err := snapshot.Trace(q)
			if err != nil {
				return err
			}
			if err := printReport(cmd.OutOrStdout(), report, output); err != nil {
				return err
			}
			if probe {
				return s.probe(cmd, report)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of names without one")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml; default for people")
	cmd.Flags().BoolVar(&probe, "probe", false, "also send a real packet, in the lab, and compare")
	return cmd
}

var protocols = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}

// parseQuery reads FROM and TO:PORT[/PROTOCOL].
func parseQuery(namespace, from, to string) (trace.Query, error) {
	q := trace.Query{Namespace: namespace, From: from, Protocol: protocols["tcp"]}
	colon := strings.LastIndexByte(to, ':')
	if colon < 1 {
		return q, usagef("%q names no port: write TO:PORT, such as nginx:80 or dns:53/udp", to)
	}
	q.To = to[:colon]
	port, protocol, given := strings.Cut(to[colon+1:], "/")
	if given {
		number, ok := protocols[strings.ToLower(protocol)]
		if !ok {
			return q, usagef("protocol %q is not one of tcp, udp, sctp", protocol)
		}
		q.Protocol = number
	}
	if len(validation.IsValidPortName(port)) == 0 {
		q.PortName = port
		if !given {
			q.Protocol = 0 // that of the name
		}
		return q, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return q, usagef("%q is neither a port number from 1 to 65535 nor the name of a port", port)
	}
	q.Port = uint16(n)
	return q, nil
}

func printReport(w io.Writer, r *trace.Report, output string) error {
	switch output {
	case "":
	case "json", "yaml":
		return encode(w, output, r)
	default:
		return usagef("output %q: use json or yaml", output)
	}
	colour := func(verdict bool, text string) string {
		if text = printable(text); !colours(w) {
			return text
		}
		if verdict {
			return "\x1b[32m" + text + "\x1b[0m"
		}
		return "\x1b[31m" + text + "\x1b[0m"
	}
	fmt.Fprintf(w, "from      %s%s\n", printable(r.From.String()), where(r.From, r.Source))
	fmt.Fprintf(w, "to        %s%s port %d/%s\n", printable(r.To.String()), where(r.To, r.Address), r.Port, r.Protocol)
	if t := r.Service; t != nil {
		seen := "endpoints see the client's own address"
		if !t.KeepsSource {
			seen = "endpoints see the node's address"
		}
		fmt.Fprintf(w, "service   %s (%s), translated on node %s; %s\n", printable(t.Service), t.Class, printable(t.Node), seen)
	}
	for _, way := range r.Ways {
		name := way.To.String()
		if way.Pod != nil {
			name = fmt.Sprintf("pod %s, %s", way.Pod, way.To)
		}
		fmt.Fprintf(w, "endpoint  %s\n", printable(name))
		if d := way.Egress; d != nil {
			fmt.Fprintf(w, "  egress  %s\n", colour(d.Allowed, d.Reason))
		}
		fmt.Fprintf(w, "  route   %s\n", printable(way.Route))
		if d := way.Ingress; d != nil {
			fmt.Fprintf(w, "  ingress %s\n", colour(d.Allowed, d.Reason))
		}
	}
	_, err := fmt.Fprintf(w, "verdict   %s\n", colour(r.Verdict == trace.Allowed, r.Sentence))
	return err
}

// where is the address behind a party's name, unless that is the address.
func where(p trace.Party, addr netip.Addr) string {
	switch {
	case p.Pod != nil:
		return fmt.Sprintf(", %s on node %s", addr, p.Node)
	case p.About == "outside":
		return ""
	}
	return ", " + addr.String()
}

// probe sends a real packet from the pod by the lab's own tool, whose exit code
// tells what it met with.
func (s *Session) probe(cmd *cobra.Command, r *trace.Report) error {
	if r.From.Pod == nil {
		return usagef("--probe sends from a pod of the lab; %s is none", r.From)
	}
	exe, err := siblingExecutable("twill-lab")
	if err != nil {
		return err
	}
	protocol := r.Protocol
	args := []string{"exec", r.From.Pod.Name, "-n", r.From.Pod.Namespace}
	if lab := s.connection.lab; lab != "" {
		args = append(args, "--lab", lab)
	}
	args = append(args, "--", "probe", protocol, netip.AddrPortFrom(r.Address, r.Port).String())
	out, err := exec.CommandContext(cmd.Context(), exe, args...).CombinedOutput()
	words := strings.Fields(string(out))
	if len(words) == 0 {
		return fmt.Errorf("probe: no answer from %s: %w", exe, err)
	}
	seen := words[len(words)-1]
	want := map[trace.Verdict][]string{
		// Where nobody listens the pod itself refuses: the network let it pass.
		trace.Allowed: {"open", "refused"}, trace.Denied: {"timeout"}, trace.Rejected: {"refused"}, trace.Dropped: {"timeout"},
	}[r.Verdict]
	for _, w := range want {
		if w == seen {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "probe     %s: agrees\n", seen)
			return err
		}
	}
	if r.Verdict == trace.Partly {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "probe     %s: it depends on the endpoint\n", seen)
		return err
	}
	if r.Verdict == trace.Allowed && protocol == "udp" && seen == "timeout" {
		// A server need not answer a datagram that means nothing to it.
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "probe     %s: undecided, nobody has to answer UDP\n", seen)
		return err
	}
	return fmt.Errorf("the probe met with %q, which is not what the trace says (%s): %s", seen, r.Verdict, strings.TrimSpace(string(out)))
}

// siblingExecutable finds an executable of ours beside this one, or in PATH.
func siblingExecutable(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		if path := filepath.Join(filepath.Dir(self), name); isExecutable(path) {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside twill nor in PATH: build it with `make build`", name)
	}
	return path, nil
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
