package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/lab"
)

func call(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e strings.Builder
	code = run(t.Context(), args, &o, &e)
	return o.String(), e.String(), code
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		want string
	}{
		{"frob", `unknown command "frob" for "twill lab"`},
		{"up --nodes three", "--nodes"},
		{"up --pool 10.0.0.0", "--pool"},
		{"up more", "usage:"},
		{"run", "one name"},
		{"run a b", "one name"},
		{"run a -l app", "KEY=VALUE"},
		{"run a --port http", "1 to 65535"},
		{"run a --rm", "after --"},
		{"run a --rm --replicas 2 -- true", "--replicas"},
		{"rm", "-l"},
		{"rm a -l b=c", "-l"},
		{"exec a", "after --"},
		{"exec a ls", "after --"},
		{"node -- ls", "after --"},
		{"outside", "usage:"},
		{"agent master", "usage:"},
		{"status -o yaml", "json"},
		{"load", "usage:"},
	} {
		_, errs, code := call(t, strings.Fields(c.args)...)
		if code != exitUsage || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d, %q, want %q", c.args, code, errs, c.want)
		}
	}
}

func TestNoLab(t *testing.T) {
	for _, args := range []string{"status", "run a", "rm a", "exec a -- ls", "node a -- ls", "outside -- ls", "agent a stop", "etcd kill", "logs a", "load http://a"} {
		words := append(strings.Fields(args), "")
		copy(words[2:], words[1:])
		words[1] = "--name=none-of-this-name"
		_, errs, code := call(t, words...)
		if code != exitFailed || !strings.Contains(errs, `there is no lab "none-of-this-name"`) {
			t.Errorf("%v: exit %d, %q", words, code, errs)
		}
	}
	if _, errs, code := call(t, "down", "--lab", "none-of-this-name"); code != 0 || !strings.Contains(errs, "there is no lab") {
		t.Errorf("down: exit %d, %q", code, errs)
	}
}

func TestPlaceOf(t *testing.T) {
	for text, want := range map[string]lab.Place{
		"outside":     lab.Outside(),
		"node/node01": lab.Node("node01"),
		"access":      lab.Pod("shop", "access"),
	} {
		if got := placeOf(text, "shop"); got != want {
			t.Errorf("placeOf(%q) = %v", text, got)
		}
	}
}

func TestPrintStatus(t *testing.T) {
	addr := netip.MustParseAddr
	status := lab.Status{
		Name: "lab", Endpoint: "unix:///run/twill-lab/lab/etcd.sock",
		Etcd: lab.ProcessStatus{Running: true, PID: 11}, Controller: lab.ProcessStatus{Running: true, PID: 12},
		Nodes: []lab.NodeStatus{
			{Name: "master", Addresses: []netip.Addr{addr("172.16.10.10"), addr("fd00:172:16:10::10")}, Agent: lab.ProcessStatus{Running: true, PID: 13}},
			{Name: "node01", Addresses: []netip.Addr{addr("172.16.10.11")}, Agent: lab.ProcessStatus{Ended: "signal: killed", Code: -1}},
		},
		Pods: []lab.PodStatus{
			{Namespace: "default", Name: "job", Node: "node01", Addresses: []netip.Addr{addr("10.244.0.7")}, State: "Completed"},
		},
	}
	var out strings.Builder
	if err := printStatus(&out, status); err != nil {
		t.Fatal(err)
	}
	want := `LAB   ETCD               CONTROLLER         STORE
lab   running (pid 11)   running (pid 12)   unix:///run/twill-lab/lab/etcd.sock

NODE     ADDRESS                           AGENT
master   172.16.10.10,fd00:172:16:10::10   running (pid 13)
node01   172.16.10.11                      ended: signal: killed

NAMESPACE   POD   NODE     ADDRESS      STATE
default     job   node01   10.244.0.7   Completed
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}
