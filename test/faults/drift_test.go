package faults

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/test/testlab"
)

const (
	// mendedWithin is how soon what somebody else removed must be there again. A
	// busy machine may miss it once, not removalTries times.
	mendedWithin = time.Second
	removalTries = 3
)

// removal takes one thing of ours away by hand. A row of the report is of several
// kinds.
type removal struct{ node, row, kind, script string }

// breaks are rows of what a connection may not outlive. While no chain translates,
// an answer that is on its way arrives from the endpoint's own address, to which
// the client has no connection, and what it says to that ends the endpoint's.
var breaks = []string{"table", "chain"}

// TestEverythingRemovedByHand takes away what is ours on a node, one thing after
// the other, as the kernel lists it: one of each kind, or all.
func TestEverythingRemovedByHand(t *testing.T) {
	for _, program := range []string{"nft", "ip", "bridge"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs the program %s, to remove things by hand: %v", program, err)
		}
	}
	s := newScene(t, lab.Config{DualStack: true})
	s.lostAfter = 4 * time.Second // some are: what is not there carries nothing
	var all []removal
	for _, node := range []string{"master", "node01"} { // the client's, and one with policies
		all = append(all, s.removals(t, node)...)
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	rows, kinds := map[string][]removal{}, map[string]bool{}
	for _, r := range all {
		if *every || !kinds[r.kind] {
			kinds[r.kind] = true
			rows[r.row] = append(rows[r.row], r)
		}
	}
	for _, row := range slices.Sorted(maps.Keys(rows)) {
		t.Run(row, func(t *testing.T) { s.removeEach(t, row, rows[row]) })
	}
	s.expect(t, "client -> server-1 server-2", "stranger -> server-1 server-2")
	s.settled(t)
	s.asPlanned(t)
}

func (s *scene) removeEach(t *testing.T, row string, removals []removal) {
	t.Helper()
	var missing, slowest time.Duration
	e := s.underLoad(t, "removed by hand: "+row, func() (time.Duration, string) {
		for _, r := range removals {
			took, sum := s.remove(t, r)
			missing, slowest = missing+sum, max(slowest, took)
		}
		return slowest, fmt.Sprintf("the slowest of %d was there again", len(removals))
	})
	for _, r := range e.results {
		if most := int(1.5*rate*missing.Seconds()) + 5; r.Lost > most {
			t.Errorf("%d lost in %s, want at most %d", r.Lost, missing, most)
		}
	}
	if e.broken > 0 && !slices.Contains(breaks, row) {
		t.Errorf("%d connections broke", e.broken)
	}
}

// TestBegunWithoutRules has a flow of datagrams begin while a node has no rules.
// It goes on from the same port, and what conntrack knows of it must not keep it
// from the service when they are there again.
func TestBegunWithoutRules(t *testing.T) {
	t.Parallel() // it waits more than it works
	needNft(t)
	s := newScene(t, lab.Config{})
	proceed := s.freeze(t)
	// While anybody has a rule about connections the kernel keeps track of them.
	s.at(t, "master", "nft 'table inet faults { chain track { type filter hook forward priority 0; ct state new accept; }; }'")
	s.at(t, "master", "nft delete table inet twill")
	var conn net.Conn
	if err := space.In(s.pods["client"].task, func() (err error) {
		conn, err = net.Dial("udp", s.service)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if testlab.Ask(conn, silence) == nil {
		t.Error("the service answers without rules")
	}
	proceed()
	testlab.Eventually(t, patience, func() error { return testlab.Ask(conn, silence) })
	s.asPlanned(t)
}

// remove takes something away and waits until the node is as it was. It returns
// how long that took at best, and in all tries together.
func (s *scene) remove(t *testing.T, r removal) (best, sum time.Duration) {
	t.Helper()
	before, err := s.State(t.Context(), r.node)
	if err != nil {
		t.Fatal(err)
	}
	for range removalTries {
		s.at(t, r.node, r.script)
		took := testlab.Eventually(t, patience, func() error {
			now, err := s.State(t.Context(), r.node)
			if diff := cmp.Diff(before, now); err == nil && diff != "" {
				return fmt.Errorf("%s: %s: not mended:\n%s", r.kind, r.script, diff)
			}
			return err
		})
		if sum += took; best == 0 || took < best {
			best = took
		}
		if best <= mendedWithin {
			t.Logf("%s: %s: %s: mended after %d ms", r.kind, r.node, r.script, best.Milliseconds())
			return best, sum
		}
	}
	t.Errorf("%s: %s: not mended within %s in %d tries", r.kind, r.script, mendedWithin, removalTries)
	return best, sum
}

// removals lists what there is to remove.
func (s *scene) removals(t *testing.T, node string) []removal {
	t.Helper()
	var out []removal
	add := func(row, kind, format string, args ...any) {
		out = append(out, removal{node, row, kind, fmt.Sprintf(format, args...)})
	}
	add("table", "table", "nft delete table inet twill")
	add("tunnel", "device", "ip link del twill-vxlan")
	add("tunnel", "device down", "ip link set twill-vxlan down")
	add("tunnel", "MTU", "ip link set twill-vxlan mtu 1300")
	add("tunnel", "MAC", "ip link set twill-vxlan address 02:00:00:00:00:01")
	add("tunnel", "address", "ip address del 169.254.1.1/32 dev twill-vxlan")
	words := func(script string) (lines [][]string) {
		for line := range strings.Lines(s.at(t, node, script)) {
			if fields := strings.Fields(line); len(fields) > 0 {
				lines = append(lines, fields)
			}
		}
		return lines
	}
	for _, family := range []string{"-4", "-6"} {
		for _, route := range words("ip " + family + " route show proto 84") {
			if route[0] == "blackhole" {
				add("route", "black hole", "ip %s route del blackhole %s", family, route[1])
			} else {
				add("route", "route", "ip %s route del %s", family, route[0])
			}
		}
		for _, n := range words("ip " + family + " neigh show nud permanent") {
			add("neighbour", "neighbour", "ip %s neigh del %s dev %s", family, n[0], n[2])
		}
	}
	for _, entry := range words("bridge fdb show dev twill-vxlan") {
		add("FDB entry", "FDB entry", "bridge fdb del %s dev twill-vxlan dst %s", entry[0], entry[2])
	}
	for _, link := range words("ip -o link show type veth") {
		name, _, _ := strings.Cut(link[1], "@")
		if !strings.HasPrefix(name, "tw-") {
			continue
		}
		add("pod's host end", "host end", "ip link del %s", name)
		add("pod's host end", "host end down", "ip link set %s down", name)
		for _, address := range words("ip -o -6 address show dev " + name + " scope link") {
			if address[3] == "fe80::1/64" {
				add("pod's host end", "gateway address", "ip address del fe80::1/64 dev %s", name)
			}
		}
		add("sysctl", "sysctl", "echo 0 > /proc/sys/net/ipv4/conf/%s/proxy_arp", name)
	}
	for path, wrong := range map[string]string{
		"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0", "ipv4/conf/eth0/rp_filter": "1",
		"ipv4/conf/twill-vxlan/rp_filter": "1", "ipv6/conf/eth0/accept_ra": "0",
	} {
		add("sysctl", "sysctl", "echo %s > /proc/sys/net/%s", wrong, path)
	}
	return append(out, s.nftRemovals(t, node)...)
}

var (
	nftObject   = regexp.MustCompile(`(?m)^\t(chain|set|map) (\S+) \{\n((?:\t\t.*\n)*)`)
	nftElements = regexp.MustCompile(`(?s)elements = \{ (.*?) \}`)
	nftComment  = regexp.MustCompile(` comment "[^"]*"`)
)

// nftRemovals are for each chain and each set or map with something in it.
func (s *scene) nftRemovals(t *testing.T, node string) (out []removal) {
	t.Helper()
	for _, found := range nftObject.FindAllStringSubmatch(s.at(t, node, "nft -s list table inet twill"), -1) {
		what, name, body := found[1], found[2], found[3]
		if what == "chain" {
			if body != "" {
				out = append(out, removal{node, "chain", "chain", "nft flush chain inet twill " + name})
			}
			if strings.Contains(body, "hook") {
				out = append(out, removal{node, "chain", "base chain", "nft delete chain inet twill " + name})
			}
			continue
		}
		elements := nftElements.FindStringSubmatch(body)
		if elements == nil {
			continue
		}
		one, _, _ := strings.Cut(nftComment.ReplaceAllString(elements[1], ""), ",")
		out = append(out,
			removal{node, "set or map", what, fmt.Sprintf("nft flush %s inet twill %s", what, name)},
			removal{node, "element", "element of a " + what, fmt.Sprintf("nft delete element inet twill %s '{ %s }'", name, strings.TrimSpace(one))})
	}
	return out
}
