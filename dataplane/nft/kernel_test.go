package nft

import (
	"log/slog"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// open connects to the kernel of a new namespace.
func open(t testing.TB, ns *testnet.NS) *Kernel {
	t.Helper()
	var k *Kernel
	ns.Do(func() {
		var err error
		if k, err = Open(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { k.Close() })
	return k
}

func apply(t testing.TB, k *Kernel, p *plan.Plan) (writes int) {
	t.Helper()
	writes, err := k.Apply(p)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	if n := p.Chains.DirtyLen() + p.Sets.DirtyLen() + p.Elements.DirtyLen(); n != 0 {
		t.Fatalf("apply left %d keys dirty", n)
	}
	return writes
}

// settled fails unless the kernel has exactly what the plan wants, judged by
// reading everything anew.
func settled(t testing.TB, k *Kernel, p *plan.Plan) {
	t.Helper()
	before := k.have
	k.Resync()
	if n := apply(t, k, p); n != 0 {
		t.Errorf("the kernel differs from the plan: %d writes\n%s", n, cmp.Diff(rules(before), rules(k.have)))
	}
}

func rules(m *mirror) map[string][]string {
	out := map[string][]string{}
	for name, c := range m.chains {
		out[name] = c.rules
	}
	return out
}

// list is what the nft program prints. It must print whatever we write.
func list(t testing.TB, ns *testnet.NS) string {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Log("nft is not installed: what it prints is not checked")
		return ""
	}
	out, err := ns.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v\n%s", err, out)
	}
	return string(out)
}

func nft(t testing.TB, ns *testnet.NS, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs the nft program to change rules by hand")
	}
	if out, err := ns.Command("nft", args...).CombinedOutput(); err != nil {
		t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestEverythingRoundTrips(t *testing.T) {
	ns := testnet.New(t)
	k := open(t, ns)
	p := everything()
	apply(t, k, p)
	settled(t, k, p)
	if n := apply(t, k, p); n != 0 {
		t.Errorf("a second apply wrote %d objects", n)
	}
	checkListing(t, list(t, ns))
}

// checkListing compares what nft prints with what a reader should see, where
// that is not the planned text itself.
func checkListing(t *testing.T, got string) {
	if got == "" {
		return
	}
	lines := map[string]bool{}
	for line := range strings.Lines(got) {
		lines[strings.TrimSpace(line)] = true
	}
	for _, want := range strings.Split(strings.TrimSpace(printed), "\n") {
		if !lines[want] {
			t.Errorf("nft does not print %q", want)
		}
	}
	for _, want := range printedElements {
		if !strings.Contains(got, want) {
			t.Errorf("nft does not print %q", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

// TestRestartWritesNothing opens the same kernel a second time.
func TestRestartWritesNothing(t *testing.T) {
	ns := testnet.New(t)
	apply(t, open(t, ns), everything())
	if n := apply(t, open(t, ns), everything()); n != 0 {
		t.Errorf("a restart wrote %d objects", n)
	}
}

func TestCleanup(t *testing.T) {
	ns := testnet.New(t)
	k := open(t, ns)
	ns.Do(func() {
		for _, want := range []int{0, 1, 0} {
			removed, err := Cleanup(slog.New(slog.DiscardHandler))
			if err != nil || len(removed) != want {
				t.Errorf("cleanup removed %q, %v; want %d objects", removed, err, want)
			}
			if want == 0 {
				apply(t, k, everything())
			}
		}
	})
}
