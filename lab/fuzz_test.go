package lab

import (
	"bytes"
	"encoding/json"
	"io"
	"net/rpc"
	"strings"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab/space"
)

// fuzzed is the service but for Run, which only checks what it is asked.
type fuzzed struct{ *service }

func (v fuzzed) Run(r RunRequest, _ *[]PodStatus) error {
	names, err := r.check()
	if err == nil {
		_, err = v.s.reserve(r.Namespace, names, r.Node)
	}
	return err
}

// wire is a connection whose other side has said everything.
type wire struct {
	io.Reader
	bytes.Buffer
}

func (w *wire) Read(p []byte) (int, error)  { return w.Reader.Read(p) }
func (w *wire) Write(p []byte) (int, error) { return w.Buffer.Write(p) }
func (*wire) Close() error                  { return nil }

// FuzzControlSocket says anything to a supervisor: it hangs up or answers, and
// goes on.
func FuzzControlSocket(f *testing.F) {
	for _, call := range []struct {
		method string
		body   any
	}{
		{"Status", Nothing{}},
		{"Run", RunRequest{Namespace: "default", Name: "web", Labels: map[string]string{"app": "web"}, Replicas: 3, Ports: []Port{{Port: 80}}}},
		{"Run", RunRequest{Namespace: "default", Name: "web", Replicas: 1 << 40, Node: "master"}},
		{"Remove", RemoveRequest{Namespace: "default", Names: []string{"web"}}},
		{"Enter", Pod("default", "web")},
		{"Enter", Node("node01")},
		{"Control", ControlRequest{Process: "etcd", Action: "frob"}},
		{"Control", ControlRequest{Node: "node07", Action: Kill}},
	} {
		text, err := json.Marshal(map[string]any{"method": "Lab." + call.method, "params": []any{call.body}, "id": 1})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		s := &supervisor{
			pods: map[api.Key]*pod{}, etcd: &process{name: "etcd"}, controller: &process{name: "controller"},
			nodes:   []*node{{name: "master", space: &space.Space{}, agent: &process{name: "agent"}}},
			outside: &space.Space{},
		}
		server := rpc.NewServer()
		if err := server.RegisterName("Lab", fuzzed{&service{s}}); err != nil {
			t.Fatal(err)
		}
		w := &wire{Reader: bytes.NewReader(said)}
		serveConn(server, w)
		var out Status
		if err := (&service{s}).Status(Nothing{}, &out); err != nil || len(out.Nodes) != 1 {
			t.Errorf("afterwards: %+v, %v", out, err)
		}
	})
}

// FuzzCNIReply reads what a CNI executable may have printed.
func FuzzCNIReply(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","ips":[{"address":"10.244.0.2/32"},{"address":"fd00::2/128"}]}`))
	f.Add([]byte(`{"ips":[{"address":null}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, result []byte) {
		addrs, err := parseAddresses(result)
		if err == nil && len(addrs) == 0 {
			t.Error("neither addresses nor an error")
		}
		for _, a := range addrs {
			if !a.IsValid() {
				t.Errorf("%s gives %v", result, addrs)
			}
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %q", result, err)
		}
	})
}
