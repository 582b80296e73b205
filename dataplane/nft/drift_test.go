package nft

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// watching runs Watch until the test ends; drift comes on the channel.
func watching(t *testing.T, k *Kernel) <-chan struct{} {
	t.Helper()
	drift := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- k.Watch(ctx, func() {
			select {
			case drift <- struct{}{}:
			default:
			}
		}, func() {})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return drift
}

// mended applies when drift is told, until the kernel has again what it had
// before.
func mended(t *testing.T, k *Kernel, p *plan.Plan, drift <-chan struct{}, before *mirror) {
	t.Helper()
	deadline := time.After(time.Second)
	for {
		select {
		case <-drift:
			apply(t, k, p)
			if cmp.Equal(before, reread(t, k), same) {
				settled(t, k, p)
				return
			}
		case <-deadline:
			t.Fatalf("not mended after 1 s:\n%s", cmp.Diff(before, reread(t, k), same))
		}
	}
}

var same = cmp.AllowUnexported(mirror{}, set{}, chain{}, definition{}, base{})

// reread reads the kernel without telling the Kernel.
func reread(t *testing.T, k *Kernel) *mirror {
	t.Helper()
	k.applying.Lock()
	defer k.applying.Unlock()
	m, err := readTable(k.socket)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDriftIsMended(t *testing.T) {
	for _, command := range []string{
		"flush ruleset",
		"delete table inet twill",
		"flush table inet twill",
		"add table inet twill { flags dormant; }",
		"flush chain inet twill statements",
		"flush chain inet twill forward",
		"delete rule inet twill leaf handle RULE",
		"add rule inet twill leaf drop",
		"insert rule inet twill statements ip saddr 1.2.3.4 drop",
		"insert rule inet twill statements ip saddr { 1.2.3.4, 5.6.7.8 } drop",
		"replace rule inet twill leaf handle RULE drop",
		"add chain inet twill forward { policy drop; }",
		"add chain inet twill foreign",
		"add chain inet twill foreign { type filter hook input priority 5; policy drop; }",
		"delete element inet twill members { 10.244.1.2 }",
		"flush set inet twill nets",
		"add element inet twill members { 6.6.6.6 comment \"let me in\" }",
		"delete element inet twill nets { 10.0.0.0/24 }",
		"add element inet twill nets { 11.0.0.0/24 }",
		"delete element inet twill class { tcp . 80-89 }",
		"add element inet twill class { tcp . 1-79 : accept }",
		"delete element inet twill to-pod { \"tw-123\" }",
		"delete element inet twill to-pod { \"tw-123\" }; add element inet twill to-pod { \"tw-123\" : accept }",
		"delete element inet twill endpoint { 10.1.0.1 . tcp . 80 . 0 }",
		"add set inet twill foreign { type ether_addr; elements = { 02:00:00:00:00:01 }; }",
		"add map inet twill foreign { type ipv4_addr : ipv4_addr . inet_service; elements = { 1.2.3.4 : 5.6.7.8 . 80 }; }",
		"delete set inet twill target; add set inet twill target { type ipv6_addr; elements = { fd00::1 }; }",
		"delete map inet twill target",
	} {
		t.Run(command, func(t *testing.T) {
			ns := testnet.New(t)
			k, p := open(t, ns), everything()
			drift := watching(t, k)
			apply(t, k, p)
			before := reread(t, k)
			nft(t, ns, strings.ReplaceAll(command, "RULE", ruleHandle(t, ns, "leaf")))
			mended(t, k, p, drift, before)
			list(t, ns)
		})
	}
}

// ruleHandle is the handle of a chain's first rule.
func ruleHandle(t *testing.T, ns *testnet.NS, chain string) string {
	t.Helper()
	out, err := ns.Command("nft", "-j", "list", "chain", "inet", "twill", chain).Output()
	if err != nil {
		t.Skipf("needs the nft program to change rules by hand: %v", err)
	}
	var listed struct {
		Nftables []struct{ Rule *struct{ Handle int } }
	}
	if err := json.Unmarshal(out, &listed); err != nil {
		t.Fatal(err)
	}
	for _, o := range listed.Nftables {
		if o.Rule != nil {
			return fmt.Sprint(o.Rule.Handle)
		}
	}
	t.Fatalf("chain %s has no rule", chain)
	return ""
}

// TestWatchIsQuiet: neither our own changes, nor other tables, nor elements of
// dynamic sets are drift that leads to a write.
func TestWatchIsQuiet(t *testing.T) {
	ns := testnet.New(t)
	k, p := open(t, ns), everything()
	drift := watching(t, k)
	apply(t, k, p)
	p.Elements.Set(plan.ElementKey{Set: "members", Key: plan.KeyOf(addr("10.244.9.9"))}, plan.Element{})
	apply(t, k, p)
	nft(t, ns, "add table inet other { chain c { }; }")
	nft(t, ns, "add table ip twill")
	// Notifications are in order: when this one is there, those before were.
	nft(t, ns, "add element inet twill affinity { 10.1.0.1 . tcp . 80 . 10.244.1.9 : 1 }")
	select {
	case <-drift:
	case <-time.After(5 * time.Second):
		t.Fatal("no notification")
	}
	k.mu.Lock()
	if d := k.doubts; d.all || len(d.chains) != 0 || len(d.sets) != 1 {
		t.Errorf("in doubt: %+v; want the map affinity alone", d)
	}
	k.mu.Unlock()
	if n := apply(t, k, p); n != 0 {
		t.Errorf("%d writes for an element of a dynamic map", n)
	}
	if out := list(t, ns); !strings.Contains(out, "10.1.0.1 . tcp . 80 . 10.244.1.9") {
		t.Error("a dynamic map's element was removed")
	}
}

// A change of which nobody told is found when a transaction fails for it.
func TestUnnoticedDriftIsMendedByTheNextChange(t *testing.T) {
	ns := testnet.New(t)
	k, p := open(t, ns), everything()
	apply(t, k, p)
	nft(t, ns, "flush ruleset")
	p.Elements.Set(plan.ElementKey{Set: "members", Key: plan.KeyOf(addr("10.244.9.9"))}, plan.Element{})
	apply(t, k, p)
	settled(t, k, p)
}

func TestWatchEndsWithItsContext(t *testing.T) {
	k := open(t, testnet.New(t))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := k.Watch(ctx, func() {}, func() {}); err != nil {
		t.Errorf("watch: %v", err)
	}
}
