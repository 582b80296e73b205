package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// TestConflictsAreReported: another program drops what pods need while the agent
// runs, and `twill status` says so within seconds; and that it is over.
func TestConflictsAreReported(t *testing.T) {
	l := testlab.Up(t, lab.Config{Nodes: 1})
	status := func(want bool) {
		t.Helper()
		took := testlab.Eventually(t, patience, func() error {
			out, _ := l.Twill(t.Context(), "", "status") // fails while something is wrong
			const remedy = "→ let them in, in the chain that is named"
			if got := strings.Contains(out, "PacketsDropped") && strings.Contains(out, "chain FORWARD of table filter (iptables) drops them") && strings.Contains(out, remedy); got != want {
				return fmt.Errorf("reported: %t, want %t:\n%s", got, want, out)
			}
			return nil
		})
		t.Logf("after %s", took.Round(time.Millisecond))
	}
	for _, policy := range []string{"drop", "accept"} {
		// As `iptables -P FORWARD` of iptables-nft.
		rules := fmt.Sprintf("table ip filter { chain FORWARD { type filter hook forward priority 0; policy %s; }; }", policy)
		if out, err := l.At(t.Context(), lab.Node("master"), "nft", rules); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		status(policy == "drop")
	}
}
