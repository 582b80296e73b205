package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/cni/client"
	"github.com/twill-net/twill/store"
)

// maxSize is the largest that the executable may be, in bytes.
const maxSize = 2 << 20

var plugin string // the built executable

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "twill-cni")
	if err != nil {
		log.Print(err)
		return 1
	}
	defer os.RemoveAll(dir)
	plugin = filepath.Join(dir, "twill-cni")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", plugin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		log.Printf("go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func TestSize(t *testing.T) {
	info, err := os.Stat(plugin)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MB", float64(info.Size())/1e6)
	if info.Size() > maxSize {
		t.Errorf("%d bytes, want at most %d", info.Size(), maxSize)
	}
}

// Start-up is paid for every pod, so nothing but the standard library comes
// in, and of that nothing large.
func TestImports(t *testing.T) {
	list := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	out, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := "github.com/twill-net/twill/cni/client\ngithub.com/twill-net/twill/cmd/twill-cni\n"
	if string(out) != want {
		t.Errorf("imports outside of the standard library:\n%swant\n%s", out, want)
	}
	all, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, heavy := range []string{"encoding/json", "fmt", "net", "os", "time"} {
		if strings.Contains("\n"+string(all), "\n"+heavy+"\n") {
			t.Errorf("imports %s", heavy)
		}
	}
}

// fakeAttacher knows what is attached, and that is all.
type fakeAttacher struct {
	mu       sync.Mutex
	attached map[cni.ID]cni.Attachment
}

func (f *fakeAttacher) Attach(_ context.Context, a cni.Attachment) (cni.Attached, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.attached[a.ID]; ok {
		return cni.Attached{}, cni.ErrAttached
	}
	f.attached[a.ID] = a
	return cni.Attached{
		HostInterface: "tw-1", HostMAC: "02:74:77:69:6c:6c", PodMAC: "02:00:00:00:00:01", MTU: 1450,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.244.1.7/32")},
		Gateways:  []netip.Addr{netip.MustParseAddr("169.254.1.1")},
		Routes:    []cni.Route{{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("169.254.1.1")}},
	}, nil
}

func (f *fakeAttacher) Detach(_ context.Context, id cni.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, id)
	return nil
}

func (f *fakeAttacher) Check(_ context.Context, a cni.Attachment, prev cni.Attached) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.attached[a.ID]; !ok || prev.PodMAC != "02:00:00:00:00:01" {
		return fmt.Errorf("%w: %v", cni.ErrUnknownContainer, prev)
	}
	return nil
}

func (f *fakeAttacher) GC(_ context.Context, _ string, keep []cni.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := map[cni.ID]cni.Attachment{}
	for _, id := range keep {
		if a, ok := f.attached[id]; ok {
			kept[id] = a
		}
	}
	f.attached = kept
	return nil
}

func (f *fakeAttacher) Status(context.Context) error { return nil }

func (f *fakeAttacher) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.attached)
}

func (f *fakeAttacher) get(id cni.ID) cni.Attachment {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attached[id]
}

// serve serves until the returned function is called.
func serve(t testing.TB, socket string, f cni.Attacher) (stop func()) {
	t.Helper()
	l, err := cni.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- cni.Serve(ctx, l, f, slog.New(slog.DiscardHandler)) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// The library that container runtimes use runs the executable.
func TestWithTheRuntimesLibrary(t *testing.T) {
	dir := filepath.Dir(plugin)
	socket := filepath.Join(dir, "runtime.sock")
	ctx := t.Context()
	for _, version := range client.Versions {
		t.Run(version, func(t *testing.T) {
			f := &fakeAttacher{attached: map[cni.ID]cni.Attachment{}}
			stop := serve(t, socket, f)
			text := strings.Replace(string(cni.Conflist(socket)), "1.0.0", version, 1)
			network, err := libcni.ConfListFromBytes([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			runtime := libcni.NewCNIConfigWithCacheDir([]string{dir}, t.TempDir(), nil)
			pod := &libcni.RuntimeConf{
				ContainerID: "0123456789abcdef", NetNS: "/run/netns/blue", IfName: "eth0",
				Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "cart"}},
				CapabilityArgs: map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}, "mac": "02:00:00:00:00:01"},
			}
			capabilities, err := runtime.ValidateNetworkList(ctx, network)
			if err != nil || len(capabilities) != 3 {
				t.Errorf("validate: %v, %v", capabilities, err)
			}
			result, err := runtime.AddNetworkList(ctx, network, pod)
			if err != nil {
				t.Fatal(err)
			}
			if result.Version() != version {
				t.Errorf("a result of version %s", result.Version())
			}
			got := f.get(cni.ID{ContainerID: pod.ContainerID, IfName: "eth0"})
			if got.Namespace != "shop" || got.Pod != "cart" || len(got.Ports) != 1 || got.Ports[0].HostPort != 8080 || got.MAC == "" {
				t.Errorf("attached %+v", got)
			}
			if _, err := runtime.AddNetworkList(ctx, network, pod); err == nil {
				t.Error("ADD twice is no error")
			}
			if version != "0.3.1" {
				if err := runtime.CheckNetworkList(ctx, network, pod); err != nil {
					t.Errorf("check: %v", err)
				}
			}
			if version == "1.1.0" {
				if err := runtime.GetStatusNetworkList(ctx, network); err != nil {
					t.Errorf("status: %v", err)
				}
				if err := runtime.GCNetworkList(ctx, network, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: pod.ContainerID, IfName: "eth0"}}}); err != nil || f.len() != 1 {
					t.Errorf("GC: %v, %d are left", err, f.len())
				}
			}
			for range 2 {
				if err := runtime.DelNetworkList(ctx, network, pod); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
			stop()
			if err := runtime.DelNetworkList(ctx, network, pod); err == nil {
				t.Error("DEL without an agent is no error: the runtime would not try again")
			}
		})
	}
}

// execute runs the executable as a runtime would and returns its output.
func execute(t testing.TB, stdin string, env ...string) (out []byte, failed bool) {
	t.Helper()
	cmd := exec.Command(plugin)
	cmd.Env = env
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if stderr.Len() > 0 {
		t.Errorf("stderr: %s", &stderr)
	}
	return out, err != nil
}

// leaving is an agent that can't attach any more.
type leaving struct {
	fakeAttacher
	asked chan struct{}
	err   error // nil: it has not answered when it ends
}

func (l *leaving) Attach(ctx context.Context, _ cni.Attachment) (cni.Attached, error) {
	select {
	case l.asked <- struct{}{}:
	default:
	}
	if l.err != nil {
		return cni.Attached{}, l.err
	}
	<-ctx.Done()
	return cni.Attached{}, ctx.Err()
}

var errRevoked = fmt.Errorf("the pod's labels are needed: %w", store.ErrUnauthorized)

// TestSuccessor: an ADD that comes to an agent which the store does not know any more,
// or which ends, is done by its successor.
func TestSuccessor(t *testing.T) {
	for name, err := range map[string]error{"revoked": errRevoked, "ends": nil} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "cni.sock")
			old := &leaving{asked: make(chan struct{}, 1), err: err}
			stop := serve(t, socket, old)
			next := &fakeAttacher{attached: map[cni.ID]cni.Attachment{}}
			go func() {
				<-old.asked
				stop()
				serve(t, socket, next)
			}()
			out, failed := execute(t, `{"cniVersion":"1.1.0","name":"twill","type":"twill-cni","socket":"`+socket+`"}`,
				"CNI_COMMAND=ADD", "CNI_CONTAINERID=a", "CNI_NETNS=/n", "CNI_IFNAME=eth0")
			if failed || next.len() != 1 {
				t.Errorf("failed %v, the successor has attached %d: %s", failed, next.len(), out)
			}
		})
	}
}

func TestWithoutAnAgent(t *testing.T) {
	var wait sync.WaitGroup
	socket := filepath.Join(t.TempDir(), "no.sock")
	config := `{"cniVersion":"1.1.0","name":"twill","type":"twill-cni","socket":"` + socket + `"}`
	left := filepath.Join(filepath.Dir(socket), "left.sock")
	serve(t, left, &leaving{asked: make(chan struct{}, 1), err: errRevoked})
	for _, c := range []struct {
		command, config string
		code            int
		say             string
	}{
		{"ADD", config, 11, "the twill agent on this node does not answer at " + socket + ": connect: no such file or directory: see whether it runs (twill status)"},
		{"ADD", strings.Replace(config, socket, left, 1), 11, "the store does not accept the credentials"}, // and no successor comes
		{"DEL", config, 11, "does not answer"},
		{"CHECK", config, 11, "does not answer"},
		{"GC", config, 11, "does not answer"},
		{"STATUS", config, 50, "does not answer"},
		{"ADD", strings.Replace(config, "1.1.0", "0.4.0", 1), 11, "does not answer"},
		{"ADD", strings.Replace(config, "1.1.0", "0.3.1", 1), 100, "does not answer"},
		{"STATUS", strings.Replace(config, "1.1.0", "1.0.0", 1), 1, "there is no STATUS in cniVersion 1.0.0"},
		{"CHECK", strings.Replace(config, "1.1.0", "0.3.1", 1), 1, "there is no CHECK in cniVersion 0.3.1"},
		{"ADD", `{"cniVersion":"1.1.0"}`, 11, client.DefaultSocket},
		{"ADD", `{`, 6, "can't decode"},
		{"ADD", `{"name":"` + strings.Repeat("x", client.MaxMessage) + `"}`, 7, "too large"},
		{"", config, 4, "CNI_COMMAND"},
	} {
		if !strings.Contains(c.config, socket) && !strings.Contains(c.config, left) {
			if _, err := os.Stat(client.DefaultSocket); err == nil && c.say == client.DefaultSocket {
				t.Log("an agent runs on this machine: the default socket is not tried")
				continue
			}
		}
		wait.Go(func() { // all at once: ADD waits for an agent
			out, failed := execute(t, c.config, "CNI_COMMAND="+c.command, "CNI_CONTAINERID=a", "CNI_NETNS=/n", "CNI_IFNAME=eth0")
			var e client.Error
			if err := json.Unmarshal(out, &e); err != nil || !failed {
				t.Errorf("%s: failed %v, %v:\n%s", c.command, failed, err, out)
			} else if e.Code != c.code || !strings.Contains(e.Msg, c.say) {
				t.Errorf("%s: code %d: %s; want %d: %s", c.command, e.Code, e.Msg, c.code, c.say)
			}
		})
	}
	wait.Wait()
}

// "cniVersion: the value of cniVersion specified on input; supportedVersions".
// The agent need not run.
func TestVersion(t *testing.T) {
	out, failed := execute(t, `{"cniVersion":"0.4.0"}`, "CNI_COMMAND=VERSION")
	const want = `{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n"
	if string(out) != want || failed {
		t.Errorf("failed %v: %s", failed, out)
	}
	// Until 0.4.0: "Parameters: NONE".
	out, failed = execute(t, "", "CNI_COMMAND=VERSION")
	if failed || !strings.Contains(string(out), `"supportedVersions":["0.3.1",`) {
		t.Errorf("without a configuration: failed %v: %s", failed, out)
	}
}

func BenchmarkCall(b *testing.B) {
	socket := filepath.Join(filepath.Dir(plugin), "bench.sock")
	serve(b, socket, &fakeAttacher{attached: map[cni.ID]cni.Attachment{}})
	config := `{"cniVersion":"1.1.0","name":"twill","type":"twill-cni","socket":"` + socket + `"}`
	for b.Loop() {
		if out, failed := execute(b, config, "CNI_COMMAND=STATUS"); failed {
			b.Fatalf("%s", out)
		}
	}
}
