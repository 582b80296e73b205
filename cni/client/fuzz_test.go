package client

import (
	"encoding/json"
	"net"
	"path/filepath"
	"testing"
)

// FuzzReply is answered by somebody who is no agent: what comes out is what one
// frame says, or an error.
func FuzzReply(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x03\x00{}"))
	f.Add([]byte("\x00\x00\x00\x01\x01"))
	f.Add([]byte("\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add([]byte{})
	socket := filepath.Join(f.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	f.Fuzz(func(t *testing.T, answer []byte) {
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if n, _ := conn.Read(make([]byte, 4096)); n > 0 {
				_, _ = conn.Write(answer)
			}
		}()
		reply, err := Call(socket, []string{"CNI_COMMAND=ADD"}, []byte("{}"))
		if err == nil && string(answer[4:5+len(reply.Output)]) != string(append([]byte{reply.Status}, reply.Output...)) {
			t.Errorf("%q gives %d %q", answer, reply.Status, reply.Output)
		}
		if err != nil && !json.Valid(failed(&Error{Code: CodeTryAgainLater, Msg: err.Error()}).Output) {
			t.Errorf("%q gives an error that is no JSON: %v", answer, err)
		}
	})
}
