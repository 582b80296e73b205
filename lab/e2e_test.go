package lab_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/demo"
	"github.com/twill-net/twill/lab/space"
)

// built is the directory that binaries has made, if it was called.
var built string

// binaries builds the executables once for all tests.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "twill-lab-test-")
	if err != nil {
		return "", err
	}
	built = dir
	build := exec.Command("go", "build", "-o", dir+"/", "./cmd/...")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// host lists what a lab might leave on the machine.
func host(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		found["link "+l.Name] = true
	}
	for _, path := range []string{"/proc/self/mountinfo", "/proc/net/route"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			found[path+": "+line] = true
		}
	}
	for _, pattern := range []string{"/run/netns/*", "/etc/cni/*", "/opt/cni/*", "/var/lib/twill/*"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			found["file "+name] = true
		}
	}
	return found
}

// cleanHost fails the test if it leaves something on the machine. Other tests
// may run at the same time; what they make goes by itself.
func cleanHost(t *testing.T, name string) {
	t.Helper()
	before := host(t)
	t.Cleanup(func() {
		deadline, poll := time.Now().Add(30*time.Second), time.NewTicker(10*time.Millisecond)
		defer poll.Stop()
		for ; ; <-poll.C {
			left := host(t)
			maps.DeleteFunc(left, func(thing string, _ bool) bool { return before[thing] })
			pids, err := space.Marked("twill-lab/" + name)
			if err != nil {
				t.Fatal(err)
			}
			for _, pid := range pids {
				left[fmt.Sprintf("process %d", pid)] = true
			}
			if _, err := os.Stat("/run/twill-lab/" + name); err == nil {
				left["the lab's directory"] = true
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("left on the host:\n%s", strings.Join(sorted(left), "\n"))
			}
		}
	})
}

func config(t *testing.T, nodes int, dualStack bool) lab.Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make namespaces")
	}
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test-%d", os.Getpid())
	return lab.Config{Name: name, Nodes: nodes, DualStack: dualStack, Executables: dir}
}

// up makes a lab that is gone without a trace when the test ends.
func up(t *testing.T, nodes int, dualStack bool) *lab.Client {
	t.Helper()
	return upAs(t, config(t, nodes, dualStack))
}

func upAs(t *testing.T, cfg lab.Config) *lab.Client {
	t.Helper()
	cleanHost(t, cfg.Name)
	began := time.Now()
	if err := lab.Up(t.Context(), cfg, func(step string) { t.Logf("%4d ms  %s", time.Since(began).Milliseconds(), step) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := lab.Down(cfg.Name); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%4d ms  ready", time.Since(began).Milliseconds())
	client, err := lab.Dial(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func at(t *testing.T, c *lab.Client, place lab.Place, argv ...string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd, err := c.Command(ctx, place, argv...)
	if err != nil {
		t.Fatal(err)
	}
	text, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

func TestLab(t *testing.T) {
	c := up(t, 2, false)

	if err := lab.Up(t.Context(), c.Config, func(string) {}); err == nil || !strings.Contains(err.Error(), "is up already") {
		t.Errorf("a second lab of the same name: %v", err)
	}

	pods, err := c.Run(lab.RunRequest{Namespace: "shop", Name: "web", Replicas: 2, Ports: []lab.Port{{Port: 8080}}})
	if err != nil {
		t.Fatal(err)
	}
	if pods[0].Node == pods[1].Node {
		t.Errorf("both pods run on %s", pods[0].Node)
	}
	if _, err := c.Run(lab.RunRequest{Namespace: "shop", Name: "web-1", Replicas: 1}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second pod of the same name: %v", err)
	}
	web := fmt.Sprintf("http://%s:8080", pods[1].Address())
	out, code := at(t, c, lab.Pod("shop", "web-1"), "wget", "-q", web)
	if code != 0 || !strings.Contains(out, "name:      web-2\nnamespace: shop\nnode:      "+pods[1].Node) {
		t.Errorf("page: exit %d, %s", code, out)
	}
	if out, code := at(t, c, lab.Pod("shop", "web-1"), "sh", "-c", "hostname; cat /etc/resolv.conf; exit 7"); code != 7 || !strings.HasPrefix(out, "web-1\nnameserver 10.1.0.10\nsearch shop.svc") {
		t.Errorf("in the pod: exit %d, %s", code, out)
	}
	if out, code := at(t, c, lab.Pod("shop", "web-1"), "probe", "udp", "kube-dns.kube-system:53"); code == 0 || !strings.Contains(out, "timeout") {
		// The name resolves; the name server does not answer what is no query.
		t.Errorf("probe by name: exit %d, %s", code, out)
	}

	for _, job := range []struct{ script, state string }{{"exit 0", "Completed"}, {"exit 3", "Error (exit status 3)"}} {
		if _, err := c.Run(lab.RunRequest{Namespace: "shop", Name: "job", Replicas: 1, Command: []string{"sh", "-c", job.script}}); err != nil {
			t.Fatal(err)
		}
		awaitState(t, c, "job", job.state)
		if _, err := c.Remove(lab.RemoveRequest{Namespace: "shop", Names: []string{"job"}}); err != nil {
			t.Error(err)
		}
	}
	if names, err := c.Remove(lab.RemoveRequest{Namespace: "shop"}); err != nil || len(names) != 2 {
		t.Errorf("removed %v, %v", names, err)
	}
	if _, err := c.Enter(lab.Pod("shop", "web-1")); err == nil {
		t.Error("a removed pod can be entered")
	}

	for _, r := range []lab.ControlRequest{
		{Node: "node01", Action: lab.Kill}, {Node: "node01", Action: lab.Start}, {Node: "node01", Action: lab.Stop}, {Node: "node01", Action: lab.Start},
		{Process: "controller", Action: lab.Stop}, {Process: "controller", Action: lab.Start},
		{Process: "etcd", Action: lab.Stop}, {Process: "etcd", Action: lab.Start},
	} {
		if err := c.Control(r); err != nil {
			t.Errorf("%s %s%s: %v", r.Action, r.Process, r.Node, err)
		}
	}
	if err := c.Control(lab.ControlRequest{Node: "node01", Action: lab.Start}); err == nil {
		t.Error("an agent can be started twice")
	}
}

// TestRunWithoutAgent shows what the CNI executable says, and leaves no pod.
func TestRunWithoutAgent(t *testing.T) {
	c := up(t, 1, false)
	if err := c.Control(lab.ControlRequest{Node: "master", Action: lab.Stop}); err != nil {
		t.Fatal(err)
	}
	request := lab.RunRequest{Namespace: "shop", Name: "web", Replicas: 1}
	if _, err := c.Run(request); err == nil || !strings.Contains(err.Error(), "attach pod shop/web on master: CNI ADD: ") {
		t.Errorf("without an agent: %v", err)
	}
	if _, err := c.Enter(lab.Pod("shop", "web")); err == nil {
		t.Error("the pod is there")
	}
	if err := c.Control(lab.ControlRequest{Node: "master", Action: lab.Start}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Run(request); err != nil {
		t.Errorf("with an agent again: %v", err)
	}
}

// TestTwoLabs has two labs with the same addresses, of which one goes down.
func TestTwoLabs(t *testing.T) {
	first := config(t, 1, false)
	second := first
	second.Name += "-other"
	a, b := upAs(t, first), upAs(t, second)
	for name, c := range map[string]*lab.Client{"here": a, "there": b} {
		if _, err := c.Run(lab.RunRequest{Namespace: "default", Name: name, Replicas: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := lab.Down(first.Name); !found || err != nil {
		t.Fatalf("down: %t, %v", found, err)
	}
	status, err := b.Status()
	if err != nil {
		t.Fatal(err)
	}
	if !status.Nodes[0].Agent.Running || status.Pods[0].Name != "there" || status.Pods[0].State != "Running" {
		t.Errorf("the other lab: %+v", status)
	}
	if out, code := at(t, b, lab.Pod("default", "there"), "wget", "-q", "http://127.0.0.1"); code != 0 || !strings.Contains(out, "there") {
		t.Errorf("in the other lab: exit %d, %s", code, out)
	}
}

func awaitState(t *testing.T, c *lab.Client, pod, want string) {
	t.Helper()
	deadline, poll := time.Now().Add(10*time.Second), time.NewTicker(10*time.Millisecond)
	defer poll.Stop()
	for ; ; <-poll.C {
		status, err := c.Status()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(status.Pods, func(p lab.PodStatus) bool { return p.Name == pod })
		if i >= 0 && status.Pods[i].State == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("pod %s is not %s: %+v", pod, want, status.Pods)
		}
	}
}

func TestTwentyNodes(t *testing.T) {
	c := up(t, 20, false)
	status, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range status.Nodes {
		if !n.Agent.Running {
			t.Errorf("the agent of %s does not run", n.Name)
		}
	}
	if len(status.Nodes) != 20 {
		t.Errorf("%d nodes", len(status.Nodes))
	}
}

// TestCrash kills the supervisor: nothing may outlive Down, not even what cut
// itself loose from its parent.
func TestCrash(t *testing.T) {
	c := up(t, 2, false)
	loose := []string{"sh", "-c", "env -i setsid sleep 1000 & exec sleep 1000"}
	if _, err := c.Run(lab.RunRequest{Namespace: "default", Name: "loose", Replicas: 2, Command: loose}); err != nil {
		t.Fatal(err)
	}
	status, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if found, err := lab.Down(c.Config.Name); err != nil || !found {
		t.Errorf("down: %t, %v", found, err)
	}
	if found, err := lab.Down(c.Config.Name); err != nil || found {
		t.Errorf("down again: %t, %v", found, err)
	}
}

// TestUpOverCrash makes a lab where a crashed one has left its things.
func TestUpOverCrash(t *testing.T) {
	c := up(t, 1, false)
	status, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		if err = lab.Up(t.Context(), c.Config, func(string) {}); err == nil {
			return // Down is called by up's cleanup
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestInterruptedUp breaks off at each step.
func TestInterruptedUp(t *testing.T) {
	for stop := range 5 {
		t.Run(fmt.Sprint(stop), func(t *testing.T) {
			cfg := config(t, 3, false)
			cleanHost(t, cfg.Name)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			steps := 0
			err := lab.Up(ctx, cfg, func(string) {
				if steps == stop {
					cancel()
				}
				steps++
			})
			if err == nil {
				t.Error("up although interrupted")
				_, _ = lab.Down(cfg.Name)
			}
		})
	}
}

func TestDemo(t *testing.T) {
	for _, dualStack := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "dual-stack"}[dualStack], func(t *testing.T) {
			cfg := config(t, 3, dualStack)
			cleanHost(t, cfg.Name)
			var told strings.Builder
			err := demo.Run(t.Context(), demo.Config{Name: cfg.Name, DualStack: dualStack, Executables: cfg.Executables}, &told)
			t.Log(told.String())
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// pick returns the addresses of one family.
func pick(addrs []netip.Addr, v6 bool) netip.Addr {
	for _, a := range addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

func sorted[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
