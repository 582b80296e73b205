package plan

import (
	"time"

	"github.com/twill-net/twill/service"
)

// Session affinity needs a scratch register in which the endpoint's identifier goes
// from one rule to the next, and nft 1.0.6 lists such rules only where it is the
// packet's mark. Marks belong to other programs (policy routing, VPNs, other network
// plugins), and no bits of them are nobody's, so the whole mark is put back. Rules can't
// keep some bits of it either: the kernel combines a mark with constants only.
const (
	chainSaveMark    = "save-mark"
	chainRestoreMark = "restore-mark"
	setMarks         = "marks" // a connection's first packet → its mark
)

// markLifetime is for marks that are not put back, because the packet was dropped.
const markLifetime = time.Second

// planMarks asks for the chains that save and restore a packet's mark. The connection
// is known by its source and its destination before translation, since nft has no
// identifier of connections that are not confirmed yet.
func planMarks(p *Plan) {
	var save, restore []Rule
	for _, f := range families {
		origDst := OrigDstIP4
		if f.number == 6 {
			origDst = OrigDstIP6
		}
		set := setMarks + f.suffix
		p.Sets.Set(set, Set{Key: []Type{f.addr, InetProto, InetService, f.addr, InetService}, Value: []Type{Mark}, Dynamic: true, Timeout: markLifetime})
		connection := Concat{f.src, L4Proto, SrcPort, origDst, OrigDstPort}
		// nft can only print the original port where a rule says of which protocol.
		for _, protocol := range []uint8{service.TCP, service.UDP, service.SCTP} {
			save = append(save, R(Proto(protocol), UpdateMap{connection, set, markLifetime}))
			restore = append(restore,
				R(Proto(protocol), SetMark{connection, set}, DeleteFromMap{connection, set}))
		}
	}
	p.Chains.Set(chainSaveMark, Chain{Rules: save})
	p.Chains.Set(chainRestoreMark, Chain{Rules: restore})
}

// planRestoreMark asks for the hooks that put back the mark after session affinity has
// chosen an endpoint. Translation ends its chain, so that can't be done there, and
// routing, which comes next, looks at the mark. In output, translation has routed the
// packet already: a chain of type route does it again. Each packet would pay for these
// hooks, so they exist only while some front end has affinity.
func planRestoreMark(p *Plan, needed bool) {
	rules := []Rule{R(CtState{"new"}, CtStatusDNAT{}, Jump(chainRestoreMark))}
	for hook, kind := range map[string]string{"prerouting": "filter", "output": "route"} {
		setOrDelete(p.Chains, "restore-mark-"+hook, Chain{Hook: hook, Type: kind, Priority: priorityDNAT + 1, Rules: rules}, needed)
	}
}
