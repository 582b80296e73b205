package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// bufferSize is what a socket may hold in either direction: a transaction with
// 100,000 elements is sent as one datagram.
const bufferSize = 256 << 20

// message is one request.
type message struct {
	kind  uint16 // NFT_MSG_*
	flags uint16 // NLM_F_*, but for NLM_F_REQUEST
	body  attributes
}

const (
	netlinkHeader = 16
	nfgenHeader   = 4 // struct nfgenmsg: family, version, resource id
)

// socket is a netlink connection to nf_tables of the network namespace in
// which it was opened.
type socket struct {
	fd     int
	port   uint32 // our address: the kernel puts it on notifications of our changes
	family byte   // NFPROTO_*: of what is asked for and written
	seq    uint32
	buf    []byte
}

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	s := &socket{fd: fd, family: unix.NFPROTO_INET, buf: make([]byte, 1<<18)}
	if err := s.configure(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up a netlink socket: %w", err)
	}
	return s, nil
}

func (s *socket) configure() error {
	// The FORCE variants need CAP_NET_ADMIN, as all that follows does.
	for _, o := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o, bufferSize); err != nil {
			return fmt.Errorf("enlarge its buffers (needs CAP_NET_ADMIN): %w", err)
		}
	}
	// With these an error says where in the request it is, without repeating
	// the request. Kernels before 4.12 do not know them, and errors are
	// poorer there.
	for _, o := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, o, 1); err != nil && err != unix.ENOPROTOOPT {
			return err
		}
	}
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return err
	}
	s.port = name.(*unix.SockaddrNetlink).Pid
	return nil
}

func (s *socket) close() { unix.Close(s.fd) }

// append adds a message to b and returns its sequence number.
func (s *socket) append(b []byte, kind, flags uint16, resource uint16, family byte, body attributes) ([]byte, uint32) {
	s.seq++
	b = binary.NativeEndian.AppendUint32(b, uint32(netlinkHeader+nfgenHeader+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, s.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, body...), s.seq
}

func (s *socket) appendRequest(b []byte, m message) ([]byte, uint32) {
	return s.append(b, unix.NFNL_SUBSYS_NFTABLES<<8|m.kind, m.flags, 0, s.family, m.body)
}

// refusal is the kernel's error for one message of a transaction.
type refusal struct {
	index  int // of the message; -1: the transaction as such
	offset int // where in the message's body the trouble is; 0: not known
	err    error
}

// commit sends messages as one transaction. Refusals mean that nothing of it
// was done; an error, that it is not known what was done.
func (s *socket) commit(messages []message) ([]refusal, error) {
	first := s.seq + 2 // after the message that begins the batch
	b, _ := s.append(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFNL_SUBSYS_NFTABLES, unix.NFPROTO_UNSPEC, nil)
	for i, m := range messages {
		if i == len(messages)-1 {
			// One acknowledgement is enough: the kernel answers errors anyway,
			// and all answers come after the whole batch was looked at.
			m.flags |= unix.NLM_F_ACK
		}
		b, _ = s.appendRequest(b, m)
	}
	b, _ = s.append(b, unix.NFNL_MSG_BATCH_END, 0, unix.NFNL_SUBSYS_NFTABLES, unix.NFPROTO_UNSPEC, nil)
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send a transaction of %d bytes: %w", len(b), err)
	}
	return s.answers(first, len(messages))
}

// answers collects what the kernel said to a transaction. Sending is
// synchronous: all answers are there when it returns.
func (s *socket) answers(first uint32, n int) (refusals []refusal, err error) {
	confirmed := false
	for {
		answers, err := s.receive()
		if errors.Is(err, unix.EAGAIN) {
			if !confirmed && len(refusals) == 0 {
				return nil, errors.New("the kernel did not answer a transaction")
			}
			return refusals, nil
		}
		if err != nil {
			return nil, fmt.Errorf("receive a transaction's answer: %w", err)
		}
		for _, a := range answers {
			if a.Header.Type != unix.NLMSG_ERROR {
				continue
			}
			index := int(int32(a.Header.Seq - first))
			if index < -1 || index >= n {
				continue // the late answer to something else
			}
			errno, offset := parseError(a)
			if errno == 0 {
				confirmed = confirmed || index == n-1
				continue
			}
			refusals = append(refusals, refusal{index, offset - netlinkHeader - nfgenHeader, errno})
		}
	}
}

// netlinkMessage is a message as received.
type netlinkMessage struct {
	Header unix.NlMsghdr
	Data   []byte
}

// receive returns the next datagram's messages, or EAGAIN when none is there.
// The data is valid until the next call.
func (s *socket) receive() ([]netlinkMessage, error) {
	n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
	if err != nil {
		return nil, err
	}
	return parseMessages(s.buf[:n]), nil
}

func parseMessages(b []byte) (messages []netlinkMessage) {
	for len(b) >= netlinkHeader {
		h := unix.NlMsghdr{
			Len:   binary.NativeEndian.Uint32(b),
			Type:  binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]),
			Seq:   binary.NativeEndian.Uint32(b[8:]),
			Pid:   binary.NativeEndian.Uint32(b[12:]),
		}
		if h.Len < netlinkHeader || int(h.Len) > len(b) {
			return messages
		}
		messages = append(messages, netlinkMessage{h, b[netlinkHeader:h.Len]})
		b = b[min((int(h.Len)+3)&^3, len(b)):]
	}
	return messages
}

// parseError returns the error of an NLMSG_ERROR and the offset in the request
// that it complains about, 0 if it says none.
func parseError(m netlinkMessage) (errno unix.Errno, offset int) {
	if len(m.Data) < 4 {
		return unix.EBADMSG, 0
	}
	errno = unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
	if rest := m.Data[4:]; m.Header.Flags&unix.NLM_F_ACK_TLVS != 0 && len(rest) >= netlinkHeader {
		if m.Header.Flags&unix.NLM_F_CAPPED != 0 {
			rest = rest[netlinkHeader:]
		} else {
			rest = rest[min(int(binary.NativeEndian.Uint32(rest)), len(rest)):]
		}
		if at := attributes(rest).get(unix.NLMSGERR_ATTR_OFFS); len(at) == 4 {
			offset = int(binary.NativeEndian.Uint32(at))
		}
	}
	return errno, offset
}

// get asks for one object; ok is false if there is none.
func (s *socket) get(kind uint16, body attributes) (answer attributes, ok bool, err error) {
	err = s.request(kind, 0, body, func(a attributes) { answer, ok = append(attributes(nil), a...), true })
	if errors.Is(err, unix.ENOENT) {
		return nil, false, nil
	}
	return answer, ok, err
}

// dumpTries is how often a listing is begun again because the ruleset changed
// meanwhile.
const dumpTries = 20

// list asks for all objects of a kind. reset is called when the listing begins
// anew. The attributes passed to each are valid during the call only.
func (s *socket) list(kind uint16, body attributes, reset func(), each func(attributes)) error {
	var err error
	for range dumpTries {
		reset()
		if err = s.request(kind, unix.NLM_F_DUMP, body, each); !errors.Is(err, errInterrupted) {
			return err
		}
	}
	return err
}

var errInterrupted = errors.New("the ruleset changed while it was listed")

func (s *socket) request(kind, flags uint16, body attributes, each func(attributes)) error {
	b, seq := s.appendRequest(nil, message{kind: kind, flags: flags, body: body})
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	interrupted := false
	for {
		answers, err := s.receive()
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		for _, a := range answers {
			if a.Header.Seq != seq {
				continue
			}
			interrupted = interrupted || a.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch {
			case a.Header.Type == unix.NLMSG_DONE && interrupted:
				return errInterrupted
			case a.Header.Type == unix.NLMSG_DONE:
				return nil
			case a.Header.Type == unix.NLMSG_ERROR:
				if errno, _ := parseError(a); errno != 0 {
					return errno
				}
			case len(a.Data) >= nfgenHeader:
				each(a.Data[nfgenHeader:])
			}
			if flags&unix.NLM_F_DUMP == 0 {
				return nil
			}
		}
	}
}
