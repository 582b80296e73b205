// Package client is the side of CNI that runs as an executable: it hands what
// a container runtime passed to it to the agent's socket and prints the
// answer. It starts for every pod, so it imports little and decides nothing
// but what must be answered when there is no agent.
//
// A call is one connection: one Request as JSON, then one Reply as JSON.
package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// DefaultSocket is where the agent listens, unless the network configuration's
// key "socket" says otherwise.
const DefaultSocket = "/run/twill/cni.sock"

// MaxMessage is the largest request, reply and network configuration, in
// bytes.
const MaxMessage = 1 << 20

// Timeout is how long a call takes at most. The agent gives up before, so that
// its reason arrives; runtimes wait longer (2 minutes, the kubelet's default).
const Timeout = 60 * time.Second

// The commands of the CNI specification.
const (
	Add     = "ADD"
	Del     = "DEL"
	Check   = "CHECK"
	GC      = "GC"
	Status  = "STATUS"
	Version = "VERSION"
)

// Versions are the versions of the specification that are answered, oldest
// first.
var Versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Request is what a runtime asks: the CNI_ variables and the configuration.
type Request struct {
	Command     string          `json:"command"`
	ContainerID string          `json:"containerID,omitempty"`
	NetNS       string          `json:"netns,omitempty"`
	IfName      string          `json:"ifName,omitempty"`
	Args        string          `json:"args,omitempty"`
	Path        string          `json:"path,omitempty"`
	Config      json.RawMessage `json:"config,omitempty"`
}

// Reply holds a result, an error, or neither for commands without output.
type Reply struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// The error codes of the specification, §5 "Error", and our own from 100.
const (
	CodeIncompatibleVersion = 1
	CodeUnsupportedField    = 2
	CodeUnknownContainer    = 3
	CodeInvalidEnvironment  = 4
	CodeIO                  = 5
	CodeDecode              = 6
	CodeInvalidConfig       = 7
	CodeTryAgainLater       = 11
	CodeNotAvailable        = 50
	CodeLimited             = 51
	CodeFailed              = 100 // the agent could not do it
	CodeAttached            = 101 // ADD of what is attached
	CodeExhausted           = 102 // no address is left
)

// Error is the specification's error object.
type Error struct {
	CNIVersion string `json:"cniVersion,omitempty"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Call asks the agent that listens at the socket.
func Call(socket string, req Request) (Reply, error) {
	var reply Reply
	deadline := time.Now().Add(Timeout)
	conn, err := (&net.Dialer{Deadline: deadline}).Dial("unix", socket)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err // the path is said by the caller
		}
		return reply, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return reply, err
	}
	encoder := json.NewEncoder(conn)
	encoder.SetEscapeHTML(false) // would make the configuration larger
	if err := encoder.Encode(req); err != nil {
		return reply, fmt.Errorf("send the request: %w", err)
	}
	err = json.NewDecoder(io.LimitReader(conn, MaxMessage)).Decode(&reply)
	switch {
	case errors.Is(err, io.EOF):
		return reply, errors.New("it hung up without an answer")
	case err != nil:
		return reply, fmt.Errorf("it answered what is no reply: %w", err)
	case reply.Error != nil && reply.Error.Code == 0:
		return reply, errors.New("it answered with an error without a code")
	}
	return reply, nil
}
