package cni

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/twill-net/twill/cni/client"
)

// request is what a runtime asks: the variables CNI_… and the configuration.
type request struct {
	Command     string
	ContainerID string
	NetNS       string
	IfName      string
	Args        string
	Config      json.RawMessage
}

func (r request) id() ID { return ID{r.ContainerID, r.IfName} }

// readRequest reads a frame as package client describes it.
func readRequest(conn net.Conn) (r request, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		return r, err
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return r, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > client.MaxMessage {
		return r, fmt.Errorf("it has %d bytes, more than %d: is twill-cni of another version than the agent?", n, client.MaxMessage)
	}
	frame := make([]byte, n)
	if _, err := io.ReadFull(conn, frame); err != nil {
		return r, err
	}
	if r, err = parseRequest(frame); err != nil {
		return r, err
	}
	return r, conn.SetReadDeadline(time.Time{})
}

func parseRequest(frame []byte) (r request, err error) {
	for {
		variable, rest, ok := bytes.Cut(frame, []byte{0})
		if !ok {
			return r, errors.New("it ends among the variables")
		}
		frame = rest
		if len(variable) == 0 {
			r.Config = frame
			return r, nil
		}
		name, value, _ := strings.Cut(string(variable), "=")
		switch name {
		case "CNI_COMMAND":
			r.Command = value
		case "CNI_CONTAINERID":
			r.ContainerID = value
		case "CNI_NETNS":
			r.NetNS = value
		case "CNI_IFNAME":
			r.IfName = value
		case "CNI_ARGS":
			r.Args = value
		}
	}
}

// reply holds a result, an error, or neither for commands without output.
type reply struct {
	result  json.RawMessage
	failure *client.Error
	// handOver: a successor of this agent can do what failed; see client.HandOver.
	handOver bool
}

// frame is the reply as package client describes it.
func (r reply) frame() []byte {
	b := []byte{0, 0, 0, 0, 0}
	if r.failure != nil {
		// Strings and a number can be encoded.
		text, _ := json.MarshalIndent(r.failure, "", "    ")
		b[4] = 1
		if r.handOver {
			b[4] = client.HandOver
		}
		b = append(append(b, text...), '\n')
	} else if len(r.result) > 0 {
		b = append(append(b, r.result...), '\n')
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}
