package tool

import (
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// call runs a program and returns its output, its complaints and its exit code.
func call(t *testing.T, name string, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e strings.Builder
	code, found := Run(name, args, &o, &e)
	if !found {
		t.Fatalf("there is no program %s", name)
	}
	return o.String(), e.String(), code
}

var self = Identity{"nginx-1", "policy-demo", "node01"}

const page = "name:      nginx-1\nnamespace: policy-demo\nnode:      node01\naddress:   127.0.0.1\nclient:    127.0.0.1\n"

func TestPage(t *testing.T) {
	local := &net.TCPAddr{IP: net.ParseIP("fd00::1"), Port: 80}
	client := &net.UDPAddr{IP: net.ParseIP("::ffff:10.244.0.5"), Port: 4711}
	want := "name:      nginx-1\nnamespace: policy-demo\nnode:      node01\naddress:   fd00::1\nclient:    10.244.0.5\n"
	if got := self.Page(local, client); got != want {
		t.Errorf("page:\n%swant:\n%s", got, want)
	}
}

func TestWget(t *testing.T) {
	server := httptest.NewServer(self)
	t.Cleanup(server.Close)
	host := server.Listener.Addr().String()

	for _, args := range [][]string{{"-q", host, "-O", "-"}, {"-qO-", "http://" + host}, {"-q", "--timeout=5", host}} {
		if out, errs, code := call(t, "wget", args...); out != page || errs != "" || code != 0 {
			t.Errorf("wget %v: %q, %q, exit %d", args, out, errs, code)
		}
	}
	if out, _, code := call(t, "wget", "--spider", host); out != "" || code != 0 {
		t.Errorf("wget --spider: %q, exit %d", out, code)
	}
	file := filepath.Join(t.TempDir(), "page")
	if _, _, code := call(t, "wget", "-q", "-O", file, host); code != 0 {
		t.Errorf("wget -O FILE: exit %d", code)
	}
	if text, _ := os.ReadFile(file); string(text) != page {
		t.Errorf("file holds %q", text)
	}
	server.Close()
	if _, errs, code := call(t, "wget", "-q", host); code != exitFailed || !strings.Contains(errs, "connection refused") {
		t.Errorf("nobody listens: %q, exit %d", errs, code)
	}
	for _, args := range [][]string{{}, {"a", "b"}, {"--nonsense", "a"}, {"-T", "soon", "a"}} {
		if _, errs, code := call(t, "wget", args...); code != exitUsage || !strings.Contains(errs, "usage:") {
			t.Errorf("wget %v: %q, exit %d", args, errs, code)
		}
	}
}

func TestWgetGivesUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if _, errs, code := call(t, "wget", "-q", "-T", "0.05", l.Addr().String()); code != exitTimeout || !strings.Contains(errs, "timed out") {
		t.Errorf("silent server: %q, exit %d", errs, code)
	}
}

func TestEchoAndProbe(t *testing.T) {
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go self.Echo(packets, localFor)
	address := packets.LocalAddr().String()
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for datagram, want := range map[string]string{"hello": "hello", AskPage: page} {
		if _, err := c.Write([]byte(datagram)); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 1000)
		n, err := c.Read(buffer)
		if err != nil || string(buffer[:n]) != want {
			t.Errorf("%q is answered with %q, %v", datagram, buffer[:n], err)
		}
	}
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })

	out, _, code := call(t, "probe", "-T", "0.1", "udp", address, silent.LocalAddr().String())
	want := fmt.Sprintf("udp %s open\nudp %s timeout\n", address, silent.LocalAddr())
	if out != want || code != exitTimeout {
		t.Errorf("probe udp: %q, exit %d; want %q", out, code, want)
	}
	packets.Close()
	for _, network := range []string{"tcp", "udp"} {
		out, _, code = call(t, "probe", network, address)
		if want := network + " " + address + " refused\n"; out != want || code != exitFailed {
			t.Errorf("nobody listens: %q, exit %d", out, code)
		}
	}
	if _, _, code := call(t, "probe", "sctp", "127.0.0.1:1"); code != exitUsage {
		t.Errorf("probe sctp: exit %d", code)
	}
}

func TestPing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a raw socket")
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		out, errs, code := call(t, "ping", "-c", "2", "-i", "0.01", host)
		if code != 0 || !strings.Contains(out, host+": 2 sent, 2 answered") {
			t.Errorf("ping %s: %q, %q, exit %d", host, out, errs, code)
		}
	}
}

func TestHelpAndUnknown(t *testing.T) {
	for _, name := range Names() {
		if out, _, code := call(t, name, "--help"); code != 0 || !strings.HasPrefix(out, "usage: "+name) {
			t.Errorf("%s --help: %q, exit %d", name, out, code)
		}
	}
	if _, found := Run("nc", nil, io.Discard, io.Discard); found {
		t.Error("a program that is not there was found")
	}
}
