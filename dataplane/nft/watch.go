package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twill-net/twill/plan"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// subscribe joins nf_tables' notifications, without those of our own
// transactions: the kernel puts the port of the socket that made a change on
// each, and never mixes two transactions in one datagram. So they are dropped
// before they take up room here, however big the transaction.
func (s *socket) subscribe(own uint32) error {
	const portOffset = 12 // of nlmsghdr.nlmsg_pid
	// The filter loads network byte order; the field is in the host's.
	port := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, own))
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: portOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: port, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 31},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return fmt.Errorf("filter notifications: %w", err)
	}
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, prog); err != nil {
		return fmt.Errorf("filter notifications: %w", err)
	}
	return s.listen(true)
}

// listen joins or leaves nf_tables' notifications.
func (s *socket) listen(join bool) error {
	option := unix.NETLINK_ADD_MEMBERSHIP
	if !join {
		option = unix.NETLINK_DROP_MEMBERSHIP
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, option, unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("join or leave nftables' notifications: %w", err)
	}
	return nil
}

// generation is a number that grows by one with each transaction of anybody in
// the network namespace.
func (s *socket) generation() (uint32, error) {
	a, ok, err := s.get(unix.NFT_MSG_GETGEN, nil)
	if err == nil && !ok {
		err = unix.ENOENT
	}
	if err != nil {
		return 0, fmt.Errorf("read nftables' generation: %w", err)
	}
	return a.get(unix.NFTA_GEN_ID).asU32(), nil
}

// watch reports what other programs change, until ctx ends: what of our table to
// report, that they changed a table of theirs to foreign.
func (s *socket) watch(ctx context.Context, report func(doubts), foreign func()) error {
	// A duplicate in the runtime's poller: it can be interrupted, and closing
	// it does not close the subscription.
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "nftables notifications")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var messages []netlinkMessage
		var received error
		err := conn.Read(func(uintptr) bool {
			messages, received = s.receive()
			return !errors.Is(received, unix.EAGAIN)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch nftables: %w", err)
		case errors.Is(received, unix.ENOBUFS):
			report(doubts{all: true, lost: true})
			foreign()
			continue
		case received != nil:
			return fmt.Errorf("watch nftables: %w", os.NewSyscallError("recvfrom", received))
		}
		d, theirs := concerned(messages)
		if d.any() {
			report(d)
		}
		if theirs {
			foreign()
		}
	}
}

// concerned returns what of our table notifications are about, and whether some
// are about other tables.
func concerned(messages []netlinkMessage) (d doubts, theirs bool) {
	d = newDoubts()
	for _, m := range messages {
		what := m.Header.Type & 0xff
		if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nfgenHeader || what == unix.NFT_MSG_NEWGEN {
			continue
		}
		// The table's name is the first attribute of every kind of object.
		a := attributes(m.Data[nfgenHeader:])
		if m.Data[0] != unix.NFPROTO_INET || a.get(unix.NFTA_TABLE_NAME).asText() != plan.NFTable {
			theirs = true
			continue
		}
		switch what {
		case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
			d.all = true
		case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
			d.chains[a.get(unix.NFTA_CHAIN_NAME).asText()] = struct{}{}
		case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
			d.chains[a.get(unix.NFTA_RULE_CHAIN).asText()] = struct{}{}
		case unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET:
			d.sets[a.get(unix.NFTA_SET_NAME).asText()] = struct{}{}
		case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
			d.sets[a.get(unix.NFTA_SET_ELEM_LIST_SET).asText()] = struct{}{}
		}
	}
	return d, theirs
}
