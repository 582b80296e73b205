// Package conntrack removes connection tracking entries that lead UDP clients
// to endpoints that no longer serve, or to none at all, and those of pods that are
// gone. TCP tells its clients itself; a UDP client that keeps sending keeps its
// entry alive for ever. Flows to an endpoint that still serves are kept, as TCP
// connections are: while it terminates, or when it is no longer chosen for new ones.
//
// Of front ends it never removes an entry of another protocol, or of an address and
// port that the plan does not name. It never flushes the table.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/attribute"
	"github.com/twill-net/twill/plan"
)

// Kernel is the connection tracking table of the network namespace in which it
// was opened. It is for one goroutine.
type Kernel struct {
	socket *nl.SocketHandle
}

// Open connects to the kernel.
func Open() (*Kernel, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open conntrack netlink: %w", err)
	}
	return &Kernel{&nl.SocketHandle{Socket: s}}, nil
}

// Close ends the connection. Apply fails afterwards.
func (k *Kernel) Close() { k.socket.Close() }

// attempts is how often a dump that the kernel calls inconsistent is repeated
// before the front ends stay dirty for the next Apply.
const attempts = 5

// Apply removes the entries of dirty UDP front ends that lead elsewhere than to
// an endpoint that serves, and marks those front ends clean. Call it after the rules are in
// the kernel, else a packet in between makes a stale entry anew. A plan's front
// ends are all dirty at first, so what a crash left behind is removed too.
func (k *Kernel) Apply(p *plan.Plan) (deleted int, err error) {
	if p.UDPFrontends.DirtyLen() == 0 {
		return 0, nil
	}
	dirty := map[bool]map[plan.Frontend]target{true: {}, false: {}} // by whether it is IPv4
	for f := range p.UDPFrontends.Dirty() {
		backends, exists := p.UDPFrontends.Get(f)
		dirty[f.Addr.Is4()][f] = target{backends, exists}
	}
	var errs []error
	for is4, targets := range dirty {
		if len(targets) == 0 {
			continue
		}
		n, err := k.clean(is4, targets)
		deleted += n
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for f := range targets {
			p.UDPFrontends.MarkClean(f)
		}
	}
	return deleted, errors.Join(errs...)
}

// Doubt has the next Apply look at all front ends: while rules were missing,
// packets of new connections went elsewhere, and those that follow would.
func Doubt(p *plan.Plan) {
	for f := range p.UDPFrontends.All() {
		p.UDPFrontends.MarkDirty(f)
	}
}

// target is where the entries of a front end may lead.
type target struct {
	backends plan.Backends
	exists   bool
}

// stale says whether an entry has to go. One that is not translated was made
// before there were rules, and would keep its client from them; where the front
// end is gone it is an ordinary connection.
func (t target) stale(e entry) bool {
	if e.replySource == e.destination {
		return t.exists
	}
	_, found := slices.BinarySearchFunc(t.backends, e.replySource, netip.AddrPort.Compare)
	return !found
}

func (k *Kernel) clean(is4 bool, targets map[plan.Frontend]target) (deleted int, err error) {
	for range attempts {
		var doomed [][]byte
		err = k.dump(is4, filterUDP(), func(e entry, raw []byte) {
			if e.protocol != unix.IPPROTO_UDP {
				return
			}
			t, dirty := targets[plan.Frontend{Addr: e.destination.Addr(), Port: e.destination.Port()}]
			if dirty && t.stale(e) {
				doomed = append(doomed, raw)
			}
		})
		if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
			return deleted, fmt.Errorf("list UDP connections: %w", err)
		}
		for _, raw := range doomed {
			if err := k.delete(is4, raw); err != nil {
				return deleted, fmt.Errorf("delete a UDP connection: %w", err)
			}
			deleted++
		}
		if err == nil {
			return deleted, nil
		}
	}
	return deleted, fmt.Errorf("list UDP connections: the table changed during each of %d dumps: %w", attempts, err)
}

func (k *Kernel) request(operation, flags int, is4 bool) *nl.NetlinkRequest {
	family := uint8(unix.AF_INET6)
	if is4 {
		family = unix.AF_INET
	}
	r := nl.NewNetlinkRequest(nl.FAMILY_V4, 0)
	r.Type = uint16(unix.NFNL_SUBSYS_CTNETLINK<<8 | operation)
	r.Flags = uint16(unix.NLM_F_REQUEST | flags)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: k.socket}
	r.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return r
}

// dump calls each for the connections of a family that pass a filter, and on kernels
// that have no filters for all, with its message.
func (k *Kernel) dump(is4 bool, filter []*nl.RtAttr, each func(e entry, raw []byte)) error {
	r := k.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, is4)
	for _, attribute := range filter {
		r.AddData(attribute)
	}
	return r.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(raw []byte) bool {
		if e, ok := parse(raw); ok {
			each(e, raw)
		}
		return true
	})
}

// delete removes the very connection of a dumped message: that has the kernel's
// identifier in it, so a newer connection between the same ends stays. One
// that has gone meanwhile is no error.
func (k *Kernel) delete(is4 bool, raw []byte) error {
	r := k.request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, is4)
	r.AddRawData(raw[nl.SizeofNfgenmsg:])
	_, err := r.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// entry is what we need to know of a connection.
type entry struct {
	protocol    uint8
	source      netip.AddrPort // the client
	destination netip.AddrPort // as the client sees it
	replySource netip.AddrPort // who answers
}

// parse reads a dumped message.
func parse(raw []byte) (e entry, ok bool) {
	if len(raw) < nl.SizeofNfgenmsg {
		return e, false
	}
	var haveOriginal, haveReply bool
	for kind, value := range attribute.All(raw[nl.SizeofNfgenmsg:]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			e.source, e.destination, e.protocol, haveOriginal = parseTuple(value)
		case nl.CTA_TUPLE_REPLY:
			e.replySource, _, _, haveReply = parseTuple(value)
		}
	}
	return e, haveOriginal && haveReply
}

func parseTuple(b []byte) (src, dst netip.AddrPort, protocol uint8, ok bool) {
	var from, to netip.Addr
	var fromPort, toPort uint16
	for kind, value := range attribute.All(b) {
		for inner, v := range attribute.All(value) {
			switch {
			case kind == nl.CTA_TUPLE_IP && (inner == nl.CTA_IP_V4_SRC || inner == nl.CTA_IP_V6_SRC):
				from, _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_IP && (inner == nl.CTA_IP_V4_DST || inner == nl.CTA_IP_V6_DST):
				to, _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_NUM && len(v) == 1:
				protocol = v[0]
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_SRC_PORT && len(v) == 2:
				fromPort = binary.BigEndian.Uint16(v)
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_DST_PORT && len(v) == 2:
				toPort = binary.BigEndian.Uint16(v)
			}
		}
	}
	return netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort), protocol, from.IsValid() && to.IsValid()
}
