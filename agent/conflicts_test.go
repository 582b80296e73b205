package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/store/memory"
)

// conflictAgent is an agent, with its loop, whose node is a namespace.
func conflictAgent(t *testing.T) (*Agent, *testnet.NS) {
	t.Helper()
	ns, peer := testnet.New(t), testnet.New(t)
	testnet.Pair(t, ns, peer, "eth0", "eth0")
	ns.Address(t, "eth0", "192.0.2.1/24")
	a := &Agent{
		log: slog.New(slog.DiscardHandler), health: &health.Tracker{}, work: make(chan func(), 1), planned: make(chan struct{}),
		planner: plan.NewPlanner("node01"), publisher: newPublisher(memory.New(), "node01", nil),
	}
	close(a.planned)
	a.underlay.found = fabric.Underlay{Link: "eth0", MTU: 1500, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}
	a.planner.SetUnderlay(a.underlay.found)
	a.planner.Flush()
	go func() {
		for {
			select {
			case f := <-a.work:
				f()
			case <-t.Context().Done():
				return
			}
		}
	}()
	return a, ns
}

// program runs one in the namespace. The test is skipped if it is not installed.
func program(t *testing.T, ns *testnet.NS, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	if out, err := ns.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// dropped is what the condition says, a subject a line.
func dropped(a *Agent) string {
	var lines []string
	for _, c := range a.health.Conditions() {
		if c.Code == health.PacketsDropped {
			lines = append(lines, c.Subject+": "+c.Detail)
		}
	}
	return strings.Join(lines, "\n")
}

// TestConflictsComeAndGo changes rules of other programs while the agent runs.
func TestConflictsComeAndGo(t *testing.T) {
	a, ns := conflictAgent(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	var k *nft.Kernel
	var err error
	ns.Do(func() { k, err = nft.Open(a.log) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	changed := make(chan struct{}, 1)
	wait.Go(func() {
		if err := k.Watch(ctx, func() {}, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		}); err != nil {
			t.Error(err)
		}
	})
	wait.Go(func() { ns.Do(func() { a.watchConflicts(ctx, changed) }) })
	forwarded := "forwarded packets of pods: chain f of nftables table ip guard drops them"
	for _, step := range []struct{ rules, want string }{
		{"table ip guard { chain f { type filter hook forward priority 0; policy drop; }; }", forwarded},
		{"add chain ip guard o { type filter hook output priority 0; }; add rule ip guard o udp dport 8472 drop",
			forwarded + "\nudp 8472, tunnels to other nodes: chain o of nftables table ip guard drops them"},
		{"add chain ip guard f { policy accept; }; flush chain ip guard o; add rule ip guard o meta l4proto tcp drop",
			"packets of the node to its pods: chain o of nftables table ip guard drops them"},
		{"delete table ip guard", ""},
	} {
		program(t, ns, "nft", step.rules)
		deadline, tick := time.After(20*time.Second), time.NewTicker(10*time.Millisecond)
		for dropped(a) != step.want {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("after %q the condition says %q, want %q", step.rules, dropped(a), step.want)
			}
		}
		tick.Stop()
	}
}

// TestConflictsOfIptables: both programs of that name, of which the kernel tells
// the changes of one only.
func TestConflictsOfIptables(t *testing.T) {
	for _, name := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(name, func(t *testing.T) {
			a, ns := conflictAgent(t)
			j := newConflictJudge(a)
			for policy, want := range map[string]string{
				"DROP":   "forwarded packets of pods: chain FORWARD of table filter (iptables) drops them",
				"ACCEPT": "",
			} {
				program(t, ns, name, "-P", "FORWARD", policy)
				ns.Do(func() { j.judge(t.Context()) })
				if got := dropped(a); got != want {
					t.Errorf("policy %s: %q, want %q", policy, got, want)
				}
			}
		})
	}
}
