package pod

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// socket is a connection to rtnetlink of the network namespace in which it was
// opened. It carries several requests at once, which is most of what an
// attachment costs beside the kernel's own work.
type socket struct {
	fd  int
	buf []byte
}

// answerSize is more than the longest answer, the description of a link.
const answerSize = 8 << 10

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &socket{fd: fd, buf: make([]byte, answerSize)}, nil
}

func (s *socket) close() { unix.Close(s.fd) }

// request is one request and what it is for, in the words of an error.
type request struct {
	what string
	*nl.NetlinkRequest
}

func newRequest(what string, kind, flags int, data ...nl.NetlinkRequestData) request {
	r := nl.NewNetlinkRequest(kind, flags)
	r.Data = data
	return request{what, r}
}

// do has the kernel carry out requests, one after the other, and returns the
// payload with which it answers the last, if that asks for something. The error
// is of the first that was refused; the kernel goes on with the others.
func (s *socket) do(requests ...request) (answer []byte, err error) {
	var b []byte
	last := len(requests) - 1
	for i, r := range requests {
		r.Seq = uint32(i)
		if i == last {
			r.Flags |= unix.NLM_F_ACK // refusals come unasked
		}
		b = append(b, r.Serialize()...)
	}
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("%s: %w", requests[0].what, err)
	}
	for {
		// Sending is synchronous: all answers are there when it returns.
		n, _, receiveErr := unix.Recvfrom(s.fd, s.buf, 0)
		if receiveErr != nil {
			return nil, errors.Join(err, fmt.Errorf("%s: the kernel did not answer: %w", requests[last].what, receiveErr))
		}
		kind, number := binary.NativeEndian.Uint16(s.buf[4:]), int(binary.NativeEndian.Uint32(s.buf[8:]))
		payload := s.buf[unix.SizeofNlMsghdr:n]
		if kind != unix.NLMSG_ERROR {
			answer = append(answer, payload...)
			continue
		}
		if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(payload))); errno != 0 && err == nil {
			err = fmt.Errorf("%s: %w", requests[number].what, errno)
		}
		if number == last {
			return answer, err
		}
	}
}
