// Package client is the side of CNI that runs as an executable: it hands what
// a container runtime passed to it to the agent's socket and prints the
// answer. It starts for every pod, so it decides nothing but what must be
// answered when there is no agent, and imports next to nothing: that net, os,
// fmt and encoding/json are initialised and their pages read in takes half a
// millisecond, as long as all the rest.
//
// A call is one connection: the client sends a frame and gets one. A frame is
// the length of what follows in four bytes, the most significant first. What
// follows is, in a request, the variables CNI_…, each as NAME=VALUE with a zero
// byte at its end, another zero byte, and the network configuration as the
// runtime gave it; in a reply, the status to exit with as one byte, and what is
// to be printed.
package client

import (
	"errors"
	"slices"
	"strconv"
	"syscall"
)

// DefaultSocket is where the agent listens, unless the network configuration's
// key "socket" says otherwise.
const DefaultSocket = "/run/twill/cni.sock"

// MaxMessage is the largest request, reply and network configuration, in
// bytes.
const MaxMessage = 1 << 20

// Timeout is how many seconds a call takes at most. The agent gives up before,
// so that its reason arrives; runtimes wait longer (2 minutes, the kubelet's
// default).
const Timeout = 60

// HandOver is the status in the reply of an agent that can't do an ADD because it
// ends or the store does not know it any more: its successor has to be asked. What
// is to be printed holds if none comes.
const HandOver = 255

// Wait is how many seconds an ADD waits for an agent that is not there, or for the
// successor of one that is. It may have ended to be replaced, or not have begun since
// the machine did; and where an ADD fails the runtime's DEL does too, for want of an
// agent, after which containerd keeps the pod's name for a minute.
const Wait = 15

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

// In words an error for a version of the specification. "Error codes 1-99 must not
// be used other than as specified here" (0.4.0): a code that came later is not in
// an older version.
func (e Error) In(version string) *Error {
	if e.CNIVersion = version; version == "" {
		return &e
	}
	first := Versions[0]
	switch e.Code {
	case CodeUnknownContainer, CodeTryAgainLater:
		first = "0.4.0"
	case CodeInvalidEnvironment, CodeIO, CodeDecode, CodeInvalidConfig:
		first = "1.0.0"
	case CodeNotAvailable, CodeLimited:
		first = "1.1.0"
	}
	if older(version, first) {
		e.Code = CodeFailed
	}
	return &e
}

// FirstVersion is the version of the specification that a command of the agent's
// came with; empty for what is none.
func FirstVersion(command string) string {
	switch command {
	case Add, Del:
		return "0.3.1"
	case Check:
		return "0.4.0"
	case GC, Status:
		return "1.1.0"
	}
	return ""
}

// NotIn is the answer to a command that came later than a version; nil for others.
func NotIn(version, command string) *Error {
	first := FirstVersion(command)
	if !older(version, first) {
		return nil
	}
	e := Error{Code: CodeIncompatibleVersion, Msg: "there is no " + command + " in cniVersion " + version, Details: "it came with " + first}
	return e.In(version)
}

// older says whether a version is supported and before another that is.
func older(version, other string) bool {
	i := slices.Index(Versions, version)
	return i >= 0 && i < slices.Index(Versions, other)
}

// Reply is what a runtime is answered.
type Reply struct {
	Status byte   // to exit with
	Output []byte // to be printed
}

// absent is the error where nobody listens.
type absent struct{ syscall.Errno }

func (e absent) Error() string { return "connect: " + e.Errno.Error() }

// await is Call, of an agent that may be yet to come.
func await(socket string, environment []string, config []byte) (Reply, error) {
	const pause, longPause = 50, 500 // milliseconds
	for left := Wait * 1000; ; {
		reply, err := Call(socket, environment, config)
		_, isAbsent := err.(absent)
		isLeaving := err == nil && reply.Status == HandOver
		if isLeaving && left <= 0 {
			reply.Status = 1
		}
		if !isAbsent && !isLeaving || left <= 0 {
			return reply, err
		}
		wait := pause
		if isLeaving {
			wait = longPause // it asks the store each time
		}
		left -= wait
		_ = syscall.Nanosleep(&syscall.Timespec{Nsec: int64(wait) * 1e6}, nil)
	}
}

// Call asks the agent that listens at the socket.
func Call(socket string, environment []string, config []byte) (Reply, error) {
	fd, err := dial(socket)
	if err != nil {
		return Reply{}, err
	}
	defer syscall.Close(fd)
	if err := writeAll(fd, frame(environment, config)); err != nil {
		return Reply{}, errors.New("send the request: " + err.Error())
	}
	var size [4]byte
	if err := readFull(fd, size[:]); err != nil {
		return Reply{}, err
	}
	n := int(size[0])<<24 | int(size[1])<<16 | int(size[2])<<8 | int(size[3])
	if n < 1 || n > MaxMessage {
		return Reply{}, errors.New("its answer has " + strconv.Itoa(n) + " bytes: is it of another version?")
	}
	answer := make([]byte, n)
	if err := readFull(fd, answer); err != nil {
		return Reply{}, err
	}
	return Reply{answer[0], answer[1:]}, nil
}

func dial(socket string) (fd int, err error) {
	fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, errors.New("socket: " + err.Error())
	}
	limit := syscall.Timeval{Sec: Timeout}
	for _, option := range []int{syscall.SO_SNDTIMEO, syscall.SO_RCVTIMEO} {
		if err == nil {
			err = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, option, &limit)
		}
	}
	if err == nil {
		err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket})
	}
	if err != nil {
		syscall.Close(fd)
	}
	switch err {
	case nil:
		return fd, nil
	case syscall.ENOENT, syscall.ECONNREFUSED:
		return -1, absent{err.(syscall.Errno)}
	}
	return -1, errors.New("connect: " + err.Error())
}

// frame puts a request together.
func frame(environment []string, config []byte) []byte {
	b := make([]byte, 4, 1024+len(config))
	for _, variable := range environment {
		b = append(append(b, variable...), 0)
	}
	b = append(append(b, 0), config...)
	n := len(b) - 4
	b[0], b[1], b[2], b[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	return b
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// readFull fills b.
func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Read(fd, b)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return errors.New("no answer within " + strconv.Itoa(Timeout) + " s")
		case err != nil:
			return err
		case n == 0:
			return errors.New("it hung up without an answer")
		default:
			b = b[n:]
		}
	}
	return nil
}
