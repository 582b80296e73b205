package client

import (
	"bytes"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzReply is answered by somebody who is no agent: what comes out is one JSON
// value and status 0, nothing and status 0, or the specification's error and
// status 1.
func FuzzReply(f *testing.F) {
	f.Add([]byte(`{"result":{"cniVersion":"1.0.0","interfaces":[]}}`))
	f.Add([]byte(`{"error":{"cniVersion":"1.0.0","code":11,"msg":"later"}}`))
	f.Add([]byte(`{"error":{}}`))
	f.Add([]byte(`{}`))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add([]byte{})
	socket := filepath.Join(f.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	f.Fuzz(func(t *testing.T, reply []byte) {
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if json.NewDecoder(conn).Decode(&Request{}) == nil {
				_, _ = conn.Write(reply)
			}
		}()
		env := func(name string) string { return map[string]string{"CNI_COMMAND": Add}[name] }
		config := `{"cniVersion":"1.0.0","name":"twill","socket":"` + socket + `"}`
		var out bytes.Buffer
		code := Run(env, strings.NewReader(config), &out)
		text := bytes.TrimSpace(out.Bytes())
		var failure Error
		switch {
		case code == 0 && len(text) > 0 && !json.Valid(text):
			t.Errorf("%q gives %q", reply, text)
		case code == 1 && (json.Unmarshal(text, &failure) != nil || failure.Code == 0):
			t.Errorf("%q gives the error %q", reply, text)
		case code != 0 && code != 1:
			t.Errorf("%q gives status %d", reply, code)
		}
	})
}

// FuzzStdin reads what may come instead of a network configuration.
func FuzzStdin(f *testing.F) {
	f.Add("VERSION", []byte(`{"cniVersion":"1.1.0"}`))
	f.Add("ADD", []byte(`{"cniVersion":"1.0.0","name":"twill"}`))
	f.Add("", []byte(`[]`))
	f.Fuzz(func(t *testing.T, command string, config []byte) {
		var h header
		if json.Unmarshal(config, &h) == nil && h.Socket != "" {
			return // whatever answers there
		}
		env := func(name string) string { return map[string]string{"CNI_COMMAND": command}[name] }
		var out bytes.Buffer
		code := Run(env, bytes.NewReader(config), &out)
		if code != 0 && code != 1 || !json.Valid(out.Bytes()) {
			t.Errorf("%q, %q: status %d, %q", command, config, code, out.Bytes())
		}
	})
}
