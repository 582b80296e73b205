package lab

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeExecutables is a directory that looks as if a lab could be made with it.
func fakeExecutables(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range executables {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		want []string // pools; nil: refused with a word of problem
		err  string
	}{
		{"defaults", Config{Nodes: 3}, []string{"10.244.0.0/16"}, ""},
		{"dual-stack", Config{Nodes: 1, DualStack: true}, []string{"10.244.0.0/16", "fd00:10:244::/56"}, ""},
		{"own pool", Config{Nodes: 1, Pools: prefixes("10.50.0.0/20")}, []string{"10.50.0.0/20"}, ""},
		{"own IPv6 pool", Config{Nodes: 1, DualStack: true, Pools: prefixes("fd55::/64")}, []string{"10.244.0.0/16", "fd55::/64"}, ""},
		{"pool order", Config{Nodes: 1, DualStack: true, Pools: prefixes("fd55::/64", "10.50.0.0/20")}, []string{"10.50.0.0/20", "fd55::/64"}, ""},
		{"no nodes", Config{}, nil, "0 nodes"},
		{"too many nodes", Config{Nodes: 151}, nil, "1 to 150"},
		{"bad name", Config{Name: "../x", Nodes: 1}, nil, "lab name"},
		{"host bits", Config{Nodes: 1, Pools: prefixes("10.50.0.1/20")}, nil, "write 10.50.0.0/20"},
		{"two of a family", Config{Nodes: 1, Pools: prefixes("10.50.0.0/20", "10.60.0.0/20")}, nil, "second of its family"},
		{"IPv6 alone", Config{Nodes: 1, Pools: prefixes("fd55::/64")}, nil, "--dual-stack"},
		{"over services", Config{Nodes: 1, Pools: prefixes("10.0.0.0/8")}, nil, "overlaps 10.1.0.0/16"},
		{"over nodes", Config{Nodes: 1, Pools: prefixes("172.16.0.0/12")}, nil, "overlaps 172.16.10.0/24"},
	} {
		c.cfg.Executables = fakeExecutables(t)
		err := c.cfg.complete()
		switch {
		case c.want == nil && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.err)
		case c.want != nil && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != nil:
			if diff := cmp.Diff(strings.Join(c.want, ","), join(c.cfg.Pools)); diff != "" {
				t.Errorf("%s: %s", c.name, diff)
			}
		}
	}
	empty := Config{Nodes: 1, Executables: t.TempDir()}
	if err := empty.complete(); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("without executables: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	c := Config{Nodes: 12, DualStack: true}
	got := map[string]string{}
	for i, name := range c.NodeNames() {
		got[name] = join(c.NodeAddresses(i))
	}
	for name, want := range map[string]string{
		"master": "172.16.10.10,fd00:172:16:10::10",
		"node01": "172.16.10.11,fd00:172:16:10::11",
		"node11": "172.16.10.21,fd00:172:16:10::21",
	} {
		if got[name] != want {
			t.Errorf("%s has %s, want %s", name, got[name], want)
		}
	}
	if last := firstNode + maxNodes - 1; last >= outsideHost {
		t.Errorf("the last node is host %d, the outside host %d", last, outsideHost)
	}
	if got := join(c.OutsideAddresses()); got != "172.16.10.200,fd00:172:16:10::200" {
		t.Errorf("outside has %s", got)
	}
}

func TestParsePort(t *testing.T) {
	for text, want := range map[string]Port{
		"80":         {Port: 80},
		"http=80":    {Name: "http", Port: 80},
		"65535":      {Port: 65535},
		"80/tcp":     {Port: 80, Protocol: "TCP"},
		"dns=53/UDP": {Name: "dns", Port: 53, Protocol: "UDP"},
	} {
		if got, err := ParsePort(text); err != nil || got != want {
			t.Errorf("ParsePort(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "65536", "http", "=80", "http=", "80/", "80/sctp", "http=80/", "-1"} {
		if got, err := ParsePort(text); err == nil {
			t.Errorf("ParsePort(%q) = %v, want an error", text, got)
		}
	}
}

func TestPodResolver(t *testing.T) {
	c := Config{DualStack: true}
	want := "nameserver 10.1.0.10\nnameserver fd00:10:1::10\n" +
		"search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:1\n"
	if diff := cmp.Diff(want, podResolver("shop", c.nameServers())); diff != "" {
		t.Error(diff)
	}
}

func TestCNIConfig(t *testing.T) {
	a := attachment{
		containerID: "0abc", netns: "/proc/1/task/2/ns/net", namespace: "shop", name: "web-1",
		labels: map[string]string{"b": "2", "a": "1"}, ports: []Port{{Name: "http", Port: 8080}},
		result: json.RawMessage(`{"cniVersion":"1.0.0"}`),
	}
	got, err := a.config()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"args":{"cni":{"labels":[{"key":"a","value":"1"},{"key":"b","value":"2"}]},` +
		`"twill.io":{"ports":[{"name":"http","protocol":"TCP","port":8080},{"name":"http","protocol":"UDP","port":8080}]}},` +
		`"cniVersion":"1.0.0","name":"twill","prevResult":{"cniVersion":"1.0.0"},"type":"twill-cni"}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	env := strings.Join(a.environment("ADD"), "\n")
	for _, line := range []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=0abc", "CNI_NETNS=/proc/1/task/2/ns/net", "CNI_IFNAME=eth0",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"} {
		if !strings.Contains(env, line) {
			t.Errorf("environment lacks %s", line)
		}
	}
}

func TestParseAddresses(t *testing.T) {
	got, err := parseAddresses([]byte(`{"ips":[{"address":"10.244.0.5/32"},{"address":"fd00::5/128","interface":1}]}`))
	if err != nil || join(got) != "10.244.0.5,fd00::5" {
		t.Errorf("addresses %v, %v", got, err)
	}
	for _, text := range []string{"", "{}", `{"ips":[{"address":"10.244.0.5"}]}`} {
		if got, err := parseAddresses([]byte(text)); err == nil {
			t.Errorf("%q gives %v", text, got)
		}
	}
}

func TestRunRequest(t *testing.T) {
	good := RunRequest{Namespace: "shop", Name: "web", Replicas: 2, Labels: map[string]string{"app.io/name": "web"}}
	if names, err := good.check(); err != nil || strings.Join(names, ",") != "web-1,web-2" {
		t.Errorf("names %v, %v", names, err)
	}
	good.Replicas = 1
	if names, err := good.check(); err != nil || strings.Join(names, ",") != "web" {
		t.Errorf("names %v, %v", names, err)
	}
	bad := RunRequest{Namespace: "Shop", Name: "we/b", Replicas: 1, Labels: map[string]string{"a b": "c d"}}
	_, err := bad.check()
	for _, what := range []string{`namespace "Shop"`, `pod name "we/b"`, `label "a b"`, `label a b="c d"`} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v does not complain of %s", err, what)
		}
	}
	for _, n := range []int{0, -1, maxReplicas + 1, 1 << 40} {
		if _, err := (&RunRequest{Namespace: "a", Name: "b", Replicas: n}).check(); err == nil || !strings.Contains(err.Error(), "1 to 1000") {
			t.Errorf("%d replicas: %v", n, err)
		}
	}
	long := RunRequest{Namespace: "a", Name: strings.Repeat("x", 61), Replicas: 10}
	if _, err := long.check(); err == nil {
		t.Error("the last of ten names is too long, and accepted")
	}
}

func TestHasLabels(t *testing.T) {
	have := map[string]string{"app": "web", "tier": ""}
	for _, c := range []struct {
		want map[string]string
		ok   bool
	}{
		{nil, true},
		{map[string]string{"app": "web"}, true},
		{map[string]string{"tier": ""}, true},
		{map[string]string{"app": "db"}, false},
		{map[string]string{"zone": ""}, false},
	} {
		if got := hasLabels(have, c.want); got != c.ok {
			t.Errorf("hasLabels(%v) = %t", c.want, got)
		}
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := tail(path); got != "" {
		t.Errorf("of no file: %q", got)
	}
	text := strings.Repeat("long ago\n", 5000) + "just before\nthe end\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got := tail(path)
	if !strings.HasSuffix(got, "just before\n  the end") || strings.Count(got, "\n") != tailLines {
		t.Errorf("tail: %q", got)
	}
}

// TestCoreDNS holds the manifest against what else knows of it: the program's
// version, and the address that kubelets tell pods.
func TestCoreDNS(t *testing.T) {
	requirements, err := os.ReadFile("../test/kubernetes/coredns/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`github.com/coredns/coredns (v\S+)`).FindSubmatch(requirements)
	if version == nil {
		t.Fatal("no version of CoreDNS is required")
	}
	for _, line := range []string{
		"image: registry.k8s.io/coredns/coredns:" + string(version[1]),
		"clusterIP: " + dnsAddress4.String(),
		"kubernetes " + clusterName + " in-addr.arpa ip6.arpa {",
	} {
		if !strings.Contains(string(coreDNS), " "+line+"\n") {
			t.Errorf("coredns.yaml has no line %q", line)
		}
	}
}
