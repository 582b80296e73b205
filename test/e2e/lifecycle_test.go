package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/twill-net/twill/cni/client"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/golden"
	"github.com/twill-net/twill/test/testlab"
)

// lifecyclePage has the table of answers, between two lines.
const (
	lifecyclePage = "../../docs/reference/cni.md"
	lifecycleFrom = "<!-- lifecycle: written by a test -->\n"
	lifecycleTo   = "<!-- end of lifecycle -->\n"
)

// specified are the codes below 100 that a version of the specification has; the
// others it reserves.
var specified = map[string][]int{
	"0.3.1": {1, 2},
	"0.4.0": {1, 2, 3, 11},
	"1.0.0": {1, 2, 3, 4, 5, 6, 7, 11},
	"1.1.0": {1, 2, 3, 4, 5, 6, 7, 11, 50, 51},
}

// lacks are the commands that a version does not have.
var lacks = map[string][]string{"0.3.1": {"CHECK", "GC", "STATUS"}, "0.4.0": {"GC", "STATUS"}, "1.0.0": {"GC", "STATUS"}}

// meaning words a code for the table.
var meaning = map[int]string{
	client.CodeUnknownContainer: "unknown container", client.CodeInvalidEnvironment: "bad variable", client.CodeTryAgainLater: "try again",
	client.CodeNotAvailable: "not available", client.CodeFailed: "failed", client.CodeAttached: "attached already", client.CodeExhausted: "no address",
}

// TestLifecycle has an attachment of each version of the specification live on a
// real node, and holds each answer against the version's list of codes, and all of
// them against the table of the reference.
func TestLifecycle(t *testing.T) {
	l := newLifecycle(t)
	for _, version := range client.Versions {
		l.lives(t, version)
		l.collected(t, version)
	}
	l.agentDown(t)
	l.exhausted(t)
	l.nothingLeft(t)
	page, err := os.ReadFile(lifecyclePage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, from := strings.Cut(string(page), lifecycleFrom)
	_, after, to := strings.Cut(rest, lifecycleTo)
	if !from || !to {
		t.Fatalf("%s has no place for the table", lifecyclePage)
	}
	golden.Check(t, lifecyclePage, before+lifecycleFrom+l.table()+lifecycleTo+after)
}

// lifecycle is a node, and what its plugin answers.
type lifecycle struct {
	*cluster
	*containerRuntime
	rows    []string                     // in the order of the table
	answers map[string]map[string]string // by row and version
	before  []string                     // the node's devices
	made    int
}

func newLifecycle(t *testing.T) *lifecycle {
	t.Helper()
	c := &cluster{Lab: testlab.Up(t, lab.Config{Nodes: 1, DualStack: true}), tasks: map[string]string{}, addresses: map[string][]netip.Addr{}}
	c.addHost(t, "node/master", c.Config.NodeAddresses(0), nil)
	l := &lifecycle{cluster: c, containerRuntime: c.newRuntime("master"), answers: map[string]map[string]string{}}
	l.before = l.devices(t)
	return l
}

// devices are the names of the node's.
func (l *lifecycle) devices(t *testing.T) (names []string) {
	t.Helper()
	out, err := l.run("node/master", "ls", "/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(out)
}

func (l *lifecycle) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| | %s |\n|---%s|\n", strings.Join(client.Versions, " | "), strings.Repeat("|---", len(client.Versions)))
	for _, row := range l.rows {
		b.WriteString("| " + row)
		for _, version := range client.Versions {
			b.WriteString(" | " + l.answers[row][version])
		}
		b.WriteString(" |\n")
	}
	return b.String()
}

// note writes an answer into the table.
func (l *lifecycle) note(row, version, answer string) {
	if l.answers[row] == nil {
		l.rows = append(l.rows, row)
		l.answers[row] = map[string]string{}
	}
	l.answers[row][version] = answer
}

// asked calls a command and words what it is answered. An error must have the
// version that was asked in, a code that the version has, and a message that has
// says in it.
func (l *lifecycle) asked(t *testing.T, version, command string, s *sandbox, more map[string]any, says string) (answer string, out []byte) {
	t.Helper()
	config := map[string]any{"cniVersion": version}
	for key, value := range more {
		config[key] = value
	}
	out, err := l.call(command, s, 0, config)
	if err == nil {
		if len(out) > 0 != (command == "ADD" || command == "VERSION") || says != "" {
			t.Errorf("%s in %s: done, and prints %q; %q was to be refused", command, version, out, says)
		}
		return "done", out
	}
	var failure *client.Error
	if !errors.As(err, &failure) {
		t.Errorf("%s in %s: %v", command, version, err)
		return "", nil
	}
	if failure.CNIVersion != version || failure.Code < client.CodeFailed && !slices.Contains(specified[version], failure.Code) {
		t.Errorf("%s in %s: a code or version that is not the specification's: %v", command, version, err)
	}
	if slices.Contains(lacks[version], command) {
		if failure.Code != client.CodeIncompatibleVersion {
			t.Errorf("%s, which %s has not: %v", command, version, err)
		}
		return "not in this version", nil
	}
	if says == "" || !strings.Contains(failure.Error(), says) || meaning[failure.Code] == "" {
		t.Errorf("%s in %s: %v; want it to say %q", command, version, err, says)
	}
	return fmt.Sprintf("%s (%d)", meaning[failure.Code], failure.Code), nil
}

// row asks, and notes the answer.
func (l *lifecycle) row(t *testing.T, name, version, command string, s *sandbox, more map[string]any, says string) []byte {
	t.Helper()
	answer, out := l.asked(t, version, command, s, more, says)
	l.note(name, version, answer)
	return out
}

// sandbox makes a pod's namespaces, which end with the test.
func (l *lifecycle) sandbox(t *testing.T) *sandbox {
	t.Helper()
	l.made++
	name := fmt.Sprintf("life-%d", l.made)
	s, err := newSandbox(name, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// added is a result of ADD, as it is passed to CHECK and DEL, and the addresses.
func added(t *testing.T, out []byte) (map[string]any, []netip.Addr) {
	t.Helper()
	var prev map[string]any
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := errors.Join(json.Unmarshal(out, &prev), json.Unmarshal(out, &result)); err != nil || len(result.IPs) == 0 {
		t.Fatalf("a result of ADD: %v: %s", err, out)
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.Addr())
	}
	return map[string]any{"prevResult": prev}, addrs
}

// lives is the life of an attachment, with what may happen to it.
func (l *lifecycle) lives(t *testing.T, version string) {
	t.Helper()
	out := l.row(t, "VERSION", version, "VERSION", nil, nil, "")
	var versions struct {
		CNIVersion        string
		SupportedVersions []string
	}
	if err := json.Unmarshal(out, &versions); err != nil || versions.CNIVersion != version || !slices.Equal(versions.SupportedVersions, client.Versions) {
		t.Errorf("VERSION in %s: %v: %s", version, err, out)
	}
	l.note("VERSION", version, versions.SupportedVersions[0]+" to "+versions.SupportedVersions[len(versions.SupportedVersions)-1])
	l.row(t, "STATUS", version, "STATUS", nil, nil, "")

	s := l.sandbox(t)
	out = l.row(t, "ADD", version, "ADD", s, nil, "")
	prev, addrs := added(t, out)
	for _, a := range addrs {
		if has, err := s.has(a); err != nil || !has {
			t.Errorf("ADD in %s: the pod has its address %s: %t, %v", version, a, has, err)
		}
	}
	l.row(t, "ADD twice", version, "ADD", s, nil, "already attached")
	l.row(t, "CHECK", version, "CHECK", s, prev, "")
	for _, d := range damages {
		l.damaged(t, version, d)
	}
	l.row(t, "DEL", version, "DEL", s, prev, "")
	l.gone(t, s, addrs)
	l.row(t, "DEL twice", version, "DEL", s, prev, "")
	l.row(t, "CHECK after DEL", version, "CHECK", s, prev, "unknown container")

	s = l.sandbox(t)
	_, out = l.asked(t, version, "ADD", s, nil, "")
	prev, _ = added(t, out)
	s.close()
	l.row(t, "DEL, namespace gone", version, "DEL", s, prev, "")
	l.row(t, "ADD, namespace gone", version, "ADD", s, nil, "CNI_NETNS")
}

// damage is what somebody does to a pod from within.
type damage struct {
	what string
	do   func(*netlink.Handle, netlink.Link) error
	says string // of CHECK
}

var damages = []damage{
	// It is under another name: the agent makes anew what is removed.
	{"device renamed", func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkSetName(l, "other")
	}, "interface eth0 is missing in the pod"},
	{"address gone", func(h *netlink.Handle, l netlink.Link) error {
		addrs, err := h.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		return h.AddrDel(l, &addrs[0])
	}, "is missing on eth0 in the pod"},
	{"route gone", delDefaultRoute, "route 0.0.0.0/0 is missing in the pod"},
	{"MTU changed", func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkSetMTU(l, l.Attrs().MTU-10)
	}, "has MTU"},
}

func delDefaultRoute(h *netlink.Handle, l netlink.Link) error {
	return h.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: nil, Gw: netip.MustParseAddr("169.254.1.1").AsSlice()})
}

// harmed does something to the device of a sandbox.
func harmed(t *testing.T, s *sandbox, do func(*netlink.Handle, netlink.Link) error) {
	t.Helper()
	link, err := s.links.LinkByName("eth0")
	if err == nil {
		err = do(s.links, link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// damaged has CHECK find a damage, and DEL takes away what is left.
func (l *lifecycle) damaged(t *testing.T, version string, d damage) {
	t.Helper()
	s := l.sandbox(t)
	_, out := l.asked(t, version, "ADD", s, nil, "")
	prev, addrs := added(t, out)
	if d.what == damages[0].what {
		l.mended(t, version, s, prev)
	}
	if d.what == "route gone" {
		l.changedLater(t, version)
	}
	harmed(t, s, d.do)
	l.row(t, "CHECK, "+d.what, version, "CHECK", s, prev, d.says)
	if answer, _ := l.asked(t, version, "DEL", s, prev, ""); answer != "done" {
		t.Errorf("DEL in %s, %s: %s", version, d.what, answer)
	}
	l.gone(t, s, addrs)
}

// mended deletes a pod's device. CHECK may find it missing, until the agent has made
// it anew.
func (l *lifecycle) mended(t *testing.T, version string, s *sandbox, prev map[string]any) {
	t.Helper()
	harmed(t, s, func(h *netlink.Handle, link netlink.Link) error { return h.LinkDel(link) })
	check := map[string]any{"prevResult": prev["prevResult"]} // in the newest version, which has the command
	testlab.Eventually(t, patience, func() error {
		_, err := l.call("CHECK", s, 0, check)
		var failure *client.Error
		if errors.As(err, &failure) && failure.Code != client.CodeFailed {
			t.Fatal(err)
		}
		return err
	})
	l.row(t, "CHECK, device gone and made anew by the agent", version, "CHECK", s, prev, "")
}

// changedLater is what a later plugin does: it takes a route away, and out of the
// result.
func (l *lifecycle) changedLater(t *testing.T, version string) {
	t.Helper()
	s := l.sandbox(t)
	_, out := l.asked(t, version, "ADD", s, nil, "")
	prev, addrs := added(t, out)
	harmed(t, s, delDefaultRoute)
	result := prev["prevResult"].(map[string]any)
	result["routes"] = slices.DeleteFunc(result["routes"].([]any), func(r any) bool { return r.(map[string]any)["dst"] == "0.0.0.0/0" })
	l.row(t, "CHECK, route taken out by a later plugin", version, "CHECK", s, prev, "")
	l.asked(t, version, "DEL", s, prev, "")
	l.gone(t, s, addrs)
}

// gone waits until a pod has its addresses no more, which DEL does not wait for.
func (l *lifecycle) gone(t *testing.T, s *sandbox, addrs []netip.Addr) {
	t.Helper()
	testlab.Eventually(t, patience, func() error {
		for _, a := range addrs {
			if has, err := s.has(a); has || err != nil {
				return fmt.Errorf("%s still has %s (%w)", s, a, err)
			}
		}
		return nil
	})
}

// collected has GC take one attachment of two.
func (l *lifecycle) collected(t *testing.T, version string) {
	t.Helper()
	stale, valid := l.sandbox(t), l.sandbox(t)
	_, out := l.asked(t, version, "ADD", stale, nil, "")
	_, staleHas := added(t, out)
	_, out = l.asked(t, version, "ADD", valid, nil, "")
	prev, has := added(t, out)
	l.row(t, "GC", version, "GC", nil, map[string]any{"cni.dev/valid-attachments": []attachmentID{{valid.id, "eth0"}}}, "")
	if slices.Contains(lacks[version], "GC") {
		l.asked(t, version, "DEL", stale, nil, "")
	} else {
		l.asked(t, version, "CHECK", valid, prev, "")
	}
	l.gone(t, stale, staleHas)
	l.asked(t, version, "DEL", valid, prev, "")
	l.gone(t, valid, has)
}

// agentDown asks while there is no agent, and then takes down what there is.
func (l *lifecycle) agentDown(t *testing.T) {
	t.Helper()
	s := l.sandbox(t)
	_, out := l.asked(t, "1.1.0", "ADD", s, nil, "")
	prev, _ := added(t, out)
	if err := l.Control(lab.ControlRequest{Node: l.node, Action: lab.Kill}); err != nil {
		t.Fatal(err)
	}
	const says = "does not answer"
	adds := make([]string, len(client.Versions))
	var wait sync.WaitGroup
	for i, version := range client.Versions { // an ADD waits for an agent
		s := l.sandbox(t)
		wait.Go(func() { adds[i], _ = l.asked(t, version, "ADD", s, nil, says) })
	}
	wait.Wait()
	for i, version := range client.Versions {
		l.row(t, "STATUS, agent down", version, "STATUS", nil, nil, says)
		l.note("ADD, agent down", version, adds[i])
		l.row(t, "CHECK, agent down", version, "CHECK", s, prev, says)
		l.row(t, "DEL, agent down", version, "DEL", s, prev, says)
		l.row(t, "GC, agent down", version, "GC", nil, map[string]any{"cni.dev/valid-attachments": []attachmentID{}}, says)
		l.asked(t, version, "VERSION", nil, nil, "")
	}
	waits := l.sandbox(t)
	wait.Go(func() { l.asked(t, "1.1.0", "ADD", waits, nil, "") })
	if err := l.Control(lab.ControlRequest{Node: l.node, Action: lab.Start}); err != nil {
		t.Fatal(err)
	}
	wait.Wait()
	l.ready(t)
	l.asked(t, "1.1.0", "DEL", s, prev, "")
	l.asked(t, "1.1.0", "DEL", waits, nil, "")
}

// ready waits until the agent takes pods.
func (l *lifecycle) ready(t *testing.T) {
	t.Helper()
	testlab.Eventually(t, patience, func() error { _, err := l.call("STATUS", nil, 0, nil); return err })
}

// exhausted asks when all addresses of the node's only pool are taken.
func (l *lifecycle) exhausted(t *testing.T) {
	t.Helper()
	l.apply(t, `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: default-ipv4}
spec: {cidr: "${pods@4}", natOutgoing: true, disabled: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: default-ipv6}
spec: {cidr: "${pods@6}", natOutgoing: true, disabled: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: small}
spec: {cidr: 10.99.0.0/30, blockSize: 30}
`)
	var taken []*sandbox
	testlab.Eventually(t, patience, func() error {
		s := l.sandbox(t)
		addrs, err := l.add(s, 0, nil)
		if err == nil && len(addrs) == 1 {
			taken = append(taken, s)
			return errors.New("there are addresses left")
		}
		var failure *client.Error
		if errors.As(err, &failure) && failure.Code == client.CodeExhausted && len(taken) > 0 {
			return nil
		}
		_, again := l.call("DEL", s, 0, nil) // the agent has not heard of the pools yet
		return errors.Join(fmt.Errorf("it has %v, %w", addrs, err), again)
	})
	for _, version := range client.Versions {
		l.row(t, "ADD, pool exhausted", version, "ADD", l.sandbox(t), nil, "exhausted")
		l.row(t, "STATUS, pool exhausted", version, "STATUS", nil, nil, "exhausted")
	}
	for _, s := range taken {
		l.asked(t, "1.1.0", "DEL", s, nil, "")
	}
	l.ready(t)
}

// nothingLeft waits until the node has the devices that it had.
func (l *lifecycle) nothingLeft(t *testing.T) {
	t.Helper()
	testlab.Eventually(t, patience, func() error {
		if diff := cmp.Diff(l.before, l.devices(t)); diff != "" {
			return fmt.Errorf("devices of pods are left (-before +now):\n%s", diff)
		}
		return nil
	})
}
