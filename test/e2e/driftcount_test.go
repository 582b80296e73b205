package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

var driftTotal = regexp.MustCompile(`(?m)^twill_dataplane_drift_total (\d+)$`)

// TestDriftCountsOtherProgramsOnly: pods, policies and Services come and go, and
// twill_dataplane_drift_total stays 0; what is changed by hand raises it.
func TestDriftCountsOtherProgramsOnly(t *testing.T) {
	l := testlab.Up(t, lab.Config{Nodes: 1, DualStack: true})
	node := lab.Node("master")
	drift := func() int {
		t.Helper()
		text, err := l.At(t.Context(), node, "wget", "-q", "-O", "-", "http://127.0.0.1:9841/metrics")
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		found := driftTotal.FindStringSubmatch(text)
		if found == nil {
			t.Fatalf("no counter in\n%s", text)
		}
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	twill := func(input string, args ...string) {
		t.Helper()
		if out, err := l.Twill(t.Context(), input, args...); err != nil {
			t.Fatalf("twill %v: %v: %s", args, err, out)
		}
	}
	for round := range 3 {
		names := []string{}
		for i := range 4 {
			name := fmt.Sprintf("pod-%d", i)
			if _, err := l.Run(lab.RunRequest{Namespace: "default", Name: name, Replicas: 1, Labels: map[string]string{"app": "web"}, Ports: []lab.Port{{Name: "http", Port: 80}}}); err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
		twill(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}
`, "apply", "--wait", "-f", "-")
		if _, err := l.Remove(lab.RemoveRequest{Namespace: "default", Names: names}); err != nil {
			t.Fatal(err)
		}
		twill("", "delete", "netpol/web", "svc/web", "--wait")
		if n := drift(); n != 0 {
			t.Errorf("round %d of Twill's own work: the counter is %d", round, n)
		}
	}
	for _, change := range [][]string{
		{"sysctl", "-q", "-w", "net.ipv4.ip_forward=0"},
		{"nft", "delete", "chain", "inet", "twill", "forward"},
		{"ip", "route", "flush", "proto", "84"},
	} {
		before := drift()
		if out, err := l.At(t.Context(), node, change...); err != nil {
			t.Fatalf("%v: %v: %s", change, err, out)
		}
		testlab.Eventually(t, patience, func() error {
			if n := drift(); n <= before {
				return fmt.Errorf("%v: the counter is still %d", change, n)
			}
			return nil
		})
	}
}
