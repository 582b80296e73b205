package health

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/test/golden"
)

const introduction = `# Conditions

Everything that can be wrong has a stable code. ` + "`twill status`" + ` lists what is wrong now. What an agent reports, its
Node carries as a condition ` + "`Twill<code>`" + ` and its ` + "`/metrics`" + ` as ` + "`twill_condition{code=\"<code>\"}`" + `; what the
controller reports, the object carries; the rest is found by the command when it looks.

| code | reported by | what it means | what to do |
|---|---|---|---|
`

const hostSection = `
## What can be wrong with a host

` + "`twill preflight`" + ` looks for these; see [check a host](../how-to/check-a-host.md). With an error a host is no good node,
with a warning it can be one. Rules of other programs may come at any time: a running agent looks for ` + "`PacketsDropped`" + `
whenever nftables or iptables-nft change, and once a minute for iptables-legacy, whose changes the kernel does not tell.
It reports what is certain; what depends on more than the rules say only ` + "`twill preflight`" + ` does.

| code | level | what it means | what to do |
|---|---|---|---|
`

// TestReference holds the reference page against the registry.
func TestReference(t *testing.T) {
	const path = "../docs/reference/conditions.md"
	var b strings.Builder
	b.WriteString(introduction)
	for _, d := range Definitions() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Code, d.Reporter(), d.Title, d.Remedy)
	}
	b.WriteString(hostSection)
	for _, d := range HostDefinitions() {
		level := "error"
		if d.Warning {
			level = "warning"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Code, level, d.Title, d.Remedy)
	}
	golden.Check(t, path, b.String())
}

func TestTracker(t *testing.T) {
	var tracker Tracker
	changes := 0
	tracker.OnChange(func() { changes++ })
	tracker.Set(NoPathToNode, "node02", "a")
	tracker.Set(NoPathToNode, "node02", "a") // nothing new
	tracker.Set(NoPathToNode, "node01", "b")
	tracker.Clear(StoreUnreachable, "") // was not set
	if want := []Condition{{NoPathToNode, "node01", "b"}, {NoPathToNode, "node02", "a"}}; !cmp.Equal(want, tracker.Conditions()) {
		t.Error(cmp.Diff(want, tracker.Conditions()))
	}
	tracker.Set(NotSynced, "", "c")
	tracker.Replace(NoPathToNode, map[string]string{"node01": "d"})
	if want := []Condition{{NoPathToNode, "node01", "d"}, {NotSynced, "", "c"}}; !cmp.Equal(want, tracker.Conditions()) {
		t.Error(cmp.Diff(want, tracker.Conditions()))
	}
	if changes != 4 {
		t.Errorf("%d changes were told, want 4", changes)
	}
}

func TestEveryDefinitionIsComplete(t *testing.T) {
	seen := map[Code]bool{}
	all := Definitions()
	for _, d := range HostDefinitions() {
		all = append(all[:len(all):len(all)], d.Definition)
	}
	for _, d := range all {
		if d.Code == "" || d.Title == "" || d.Remedy == "" || seen[d.Code] {
			t.Errorf("%+v is incomplete or there twice", d)
		}
		seen[d.Code] = true
	}
}

func TestMessageIsRead(t *testing.T) {
	details := Details(Message([]Condition{
		{ServiceNotProgrammed, "default/a", "externalIPs 203.0.113.7: not allowed; remove it"},
		{ServiceNotProgrammed, "default/b", "x"},
	}))
	want := map[string]string{"default/a": "externalIPs 203.0.113.7: not allowed; remove it", "default/b": "x"}
	if !cmp.Equal(want, details) {
		t.Error(cmp.Diff(want, details))
	}
	if got := Message([]Condition{{NotSynced, "", "waiting"}}); got != "waiting" {
		t.Errorf("without a subject: %q", got)
	}
}
