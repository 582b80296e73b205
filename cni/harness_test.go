package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/twill-net/twill/cni/client"
	"github.com/twill-net/twill/test/golden"
)

// fakeAttacher remembers what it was asked and has no kernel.
type fakeAttacher struct {
	mu       sync.Mutex
	attached map[ID]Attachment
	checked  []Attached
	detached int // how often Detach was called
	network  string
	kept     []ID
	fail     error                           // what every method returns
	block    func(ctx context.Context) error // called by Attach
}

var podAttached = Attached{
	HostInterface: "tw-0123456789a", HostMAC: "02:74:77:69:6c:6c", PodMAC: "02:00:0a:f4:01:07", MTU: 1450,
	Addresses: []netip.Prefix{netip.MustParsePrefix("10.244.1.7/32"), netip.MustParsePrefix("fd00:10::7/128")},
	Gateways:  []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")},
	Routes: []Route{
		{Destination: netip.MustParsePrefix("169.254.1.1/32")},
		{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("169.254.1.1")},
		{netip.MustParsePrefix("::/0"), netip.MustParseAddr("fe80::1")},
	},
}

func (f *fakeAttacher) Attach(ctx context.Context, a Attachment) (Attached, error) {
	if f.block != nil {
		if err := f.block(ctx); err != nil {
			return Attached{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return Attached{}, f.fail
	}
	if _, ok := f.attached[a.ID]; ok {
		return Attached{}, fmt.Errorf("interface %s of container %s: %w", a.IfName, a.ContainerID, ErrAttached)
	}
	if f.attached == nil {
		f.attached = map[ID]Attachment{}
	}
	f.attached[a.ID] = a
	return podAttached, nil
}

func (f *fakeAttacher) Detach(_ context.Context, id ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, id)
	f.detached++
	return f.fail
}

func (f *fakeAttacher) Check(_ context.Context, a Attachment, prev Attached) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.attached[a.ID]; !ok {
		return fmt.Errorf("container %s: %w", a.ContainerID, ErrUnknownContainer)
	}
	f.checked = append(f.checked, prev)
	return f.fail
}

func (f *fakeAttacher) GC(_ context.Context, network string, keep []ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.network, f.kept = network, keep
	for id, a := range f.attached {
		if a.Network == network && !slices.Contains(keep, id) {
			delete(f.attached, id)
		}
	}
	return f.fail
}

func (f *fakeAttacher) Status(context.Context) error { return f.fail }

func (f *fakeAttacher) get(id ID) (Attachment, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.attached[id]
	return a, ok
}

// serve serves until the test ends, and returns the socket.
func serve(t testing.TB, a Attacher) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "twill-cni") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "cni.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- Serve(ctx, l, a, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// call asks the server.
func call(t testing.TB, socket string, req request) reply {
	t.Helper()
	answer, err := client.Call(socket, req.environment(), req.Config)
	if err != nil {
		t.Fatal(err)
	}
	return parseReply(t, answer)
}

// parseReply reads what a runtime would see.
func parseReply(t testing.TB, answer client.Reply) (r reply) {
	t.Helper()
	if answer.Status == 0 {
		return reply{result: answer.Output}
	}
	if err := json.Unmarshal(answer.Output, &r.failure); err != nil {
		t.Fatalf("status %d: %v: %s", answer.Status, err, answer.Output)
	}
	return r
}

// environment is how the request gets to the client.
func (r request) environment() []string {
	return []string{
		"CNI_COMMAND=" + r.Command, "CNI_CONTAINERID=" + r.ContainerID, "CNI_NETNS=" + r.NetNS,
		"CNI_IFNAME=" + r.IfName, "CNI_ARGS=" + r.Args, "CNI_PATH=/opt/cni/bin",
	}
}

func configOf(version string, more ...string) json.RawMessage {
	text := `{"cniVersion":"` + version + `","name":"twill","type":"twill-cni"`
	for _, m := range more {
		text += "," + m
	}
	return json.RawMessage(text + "}")
}

func addRequest(version string, more ...string) request {
	return request{
		Command: client.Add, ContainerID: "0123456789abcdef", NetNS: "/run/netns/blue", IfName: "eth0",
		Config: configOf(version, more...),
	}
}

var podID = ID{"0123456789abcdef", "eth0"}

func as(req request, command string) request {
	req.Command = command
	return req
}

func wantCode(t testing.TB, got reply, code int) {
	t.Helper()
	switch {
	case code == 0 && got.failure != nil:
		t.Errorf("code %d: %v, want success", got.failure.Code, got.failure)
	case code != 0 && got.failure == nil:
		t.Errorf("success, want code %d", code)
	case code != 0 && got.failure.Code != code:
		t.Errorf("code %d: %v, want code %d", got.failure.Code, got.failure, code)
	}
}

// goldenJSON compares JSON with a file.
func goldenJSON(t testing.TB, name string, got json.RawMessage) {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(got), "", "  "); err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	golden.Check(t, filepath.Join("testdata", name), b.String())
}
