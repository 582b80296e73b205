package cli

import (
	"strings"
	"testing"

	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/preflight"
	"github.com/twill-net/twill/test/golden"
)

// TestPreflightIsPrinted holds what people and programs are shown against a file.
func TestPreflightIsPrinted(t *testing.T) {
	finding := func(code health.Code, level, detail string) preflight.Finding {
		d, _ := health.LookupHost(code)
		return preflight.Finding{Code: code, Level: level, Detail: detail, Remedy: d.Remedy}
	}
	swap := finding(health.SwapOn, preflight.Error, "swap is on /dev/sda2")
	forward := finding(health.ForwardingOff, preflight.Warning, "net.ipv4.ip_forward is 0")
	forward.Setting = &preflight.Setting{Path: "net/ipv4/ip_forward", Value: "1"}
	good := preflightReport{"node01", []preflight.Result{{Check: "selinux", Seen: "not in use"}}, []preflight.Setting{*forward.Setting}}
	bad := preflightReport{"node01", []preflight.Result{
		{Check: "selinux", Seen: "not in use", Findings: []preflight.Finding{}},
		{Check: "swap", Seen: "/dev/sda2", Findings: []preflight.Finding{swap}},
		{Check: "sysctls", Seen: "ip_forward 0", Findings: []preflight.Finding{forward}},
	}, []preflight.Setting{}}

	var got strings.Builder
	for _, c := range []struct {
		title          string
		report         preflightReport
		wide, coloured bool
	}{{"good, fixed", good, false, false}, {"bad", bad, false, false}, {"bad, wide", bad, true, false}, {"bad, in colours", bad, true, true}} {
		got.WriteString("# " + c.title + "\n")
		printPreflight(&got, c.report, c.wide, c.coloured)
	}
	got.WriteString("# bad, for programs\n")
	if err := encode(&got, "yaml", bad); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/preflight.txt", got.String())
}
