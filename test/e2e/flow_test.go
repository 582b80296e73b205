package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/test/testlab"
)

const (
	// silence is how long a probe waits before it calls no answer a timeout.
	silence = 400 * time.Millisecond
	// patience is how long intent may take to be what packets meet with. Much
	// less is usual; a busy machine must not fail a test.
	patience = 10 * time.Second
	// probesAtOnce keeps answers from coming late for want of processor time.
	probesAtOnce = 48
)

// What a probe meets with.
const (
	open      = testlab.Open
	refused   = testlab.Refused
	timeout   = testlab.Timeout
	forbidden = testlab.Forbidden
)

// flow is one connection of one family.
type flow struct {
	from     string // a place: NAMESPACE/POD, node/NAME or outside
	to       string // a place or svc/NAMESPACE/NAME
	network  string // tcp or udp
	at       netip.AddrPort
	expected string
}

func (f flow) String() string {
	return fmt.Sprintf("%s → %s:%d/%s (%s)", f.from, f.to, f.at.Port(), f.network, f.at.Addr())
}

// place is where a name of a flow is.
func place(name string) lab.Place {
	if node, ok := strings.CutPrefix(name, "node/"); ok {
		return lab.Node(node)
	}
	if name == "outside" {
		return lab.Outside()
	}
	namespace, pod, _ := strings.Cut(name, "/")
	return lab.Pod(namespace, pod)
}

// flows reads lines "FROM... -> TO:PORT[/udp][@FAMILY]...", each of which stands
// for all pairs, in both families unless one is named. It adds what is the same
// by another way: to a pod that has a Service with this port, by the Service.
func (c *cluster) flows(t *testing.T, text, expected string) []flow {
	t.Helper()
	var out []flow
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		from, to, ok := strings.Cut(line, "->")
		if !ok {
			t.Fatalf("line %q has no ->", line)
		}
		for _, source := range strings.Fields(from) {
			for _, target := range strings.Fields(to) {
				out = append(out, c.ways(t, full(source), target, expected)...)
			}
		}
	}
	return out
}

// full is a name with its namespace.
func full(name string) string {
	if name == "outside" || strings.Contains(name, "/") {
		return name
	}
	return "default/" + name
}

// ways are the flows from one place to one target.
func (c *cluster) ways(t *testing.T, from, target, expected string) []flow {
	t.Helper()
	rest, family, _ := strings.Cut(target, "@")
	rest, udp := strings.CutSuffix(rest, "/udp")
	network := map[bool]string{false: "tcp", true: "udp"}[udp]
	name, portText, _ := strings.Cut(rest, ":")
	port, named := c.ports[portText]
	if !named {
		n, err := strconv.ParseUint(portText, 10, 16)
		if err != nil {
			t.Fatalf("target %q: %v", target, err)
		}
		port = uint16(n)
	}
	names := []string{full(name)}
	if service := "svc/" + full(name); c.serves[fmt.Sprintf("%s:%d/%s", service, port, network)] {
		names = append(names, service)
	}
	var out []flow
	for _, to := range names {
		if c.tasks[from] == "" || len(c.addresses[to]) == 0 {
			t.Fatalf("there is no %s or no %s", from, to)
		}
		for _, a := range c.addresses[to] {
			if family == "" || (family == "6") == a.Is6() {
				out = append(out, flow{from, to, network, netip.AddrPortFrom(a, port), expected})
			}
		}
	}
	return out
}

// probeAll probes all flows and returns what each met with.
func (c *cluster) probeAll(flows []flow) []string {
	seen := make([]string, len(flows))
	turns := make(chan struct{}, probesAtOnce)
	var wait sync.WaitGroup
	for i, f := range flows {
		wait.Go(func() {
			turns <- struct{}{}
			seen[i] = testlab.Probe(c.tasks[f.from], f.network, f.at, silence)
			<-turns
		})
	}
	wait.Wait()
	return seen
}

// expect waits until every flow meets with what is expected, and then checks
// that this stays so: what is right for a moment, on the way from one state to
// the next, does not count.
func (c *cluster) expect(t *testing.T, pass, deny string) {
	t.Helper()
	flows := append(c.flows(t, pass, open), c.flows(t, deny, timeout)...)
	began, wrong := time.Now(), []string{"not tried"}
	for len(wrong) > 0 && time.Since(began) < patience {
		wrong = c.differences(flows, false)
	}
	if len(wrong) > 0 {
		t.Errorf("after %s:\n  %s", patience, strings.Join(wrong, "\n  "))
		return
	}
	took := time.Since(began)
	if wrong := c.differences(flows, true); len(wrong) > 0 {
		t.Errorf("right at first, and then not:\n  %s", strings.Join(wrong, "\n  "))
	}
	t.Logf("%d flows are as they must be, after %s", len(flows), took.Round(time.Millisecond))
}

// differences says which flows meet with something else than is expected. patient
// asks those again that should have been answered and were not: on a busy machine
// an answer may take longer than silence, which is no fault of the network. What
// must be silent is asked once; but datagrams twice, since the first may have gone
// out by a port that an earlier flow had, which is established for a while.
func (c *cluster) differences(flows []flow, patient bool) []string {
	var wrong []string
	for i, seen := range c.probeAll(flows) {
		f := flows[i]
		if patient && seen == timeout && f.expected != timeout {
			seen = testlab.Probe(c.tasks[f.from], f.network, f.at, patience)
		}
		if patient && f.network == "udp" && f.expected == timeout && seen == open {
			seen = testlab.Probe(c.tasks[f.from], f.network, f.at, silence)
		}
		if seen != f.expected {
			wrong = append(wrong, fmt.Sprintf("%s: %s, want %s", f, seen, f.expected))
		}
	}
	slices.Sort(wrong)
	return wrong
}

// listable checks that what the agents programmed can be read with the tool
// that people use.
func (c *cluster) listable(t *testing.T) {
	t.Helper()
	for _, node := range c.Config.NodeNames() {
		out, err := c.run("node/"+node, "nft", "list", "ruleset")
		if errors.Is(err, exec.ErrNotFound) {
			t.Log("nft is not installed: rulesets are not listed")
			return
		}
		if err != nil || !strings.Contains(out, "table inet twill") {
			t.Errorf("nft list ruleset on %s: %v\n%s", node, err, out)
		}
	}
}

// run executes a program of the host in a place's network.
func (c *cluster) run(at string, argv ...string) (string, error) {
	var out []byte
	err := space.In(c.tasks[at], func() (err error) {
		out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return string(out), err
}
