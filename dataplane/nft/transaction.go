package nft

import (
	"iter"
	"slices"

	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

const (
	// maxWeight bounds a transaction (see change.weight), because the kernel
	// lets nobody else change any ruleset while it works on one: about 50 ms.
	maxWeight = 20_000
	// Bounds of one message's elements. An attribute's length is 16 bits.
	maxElements     = 500
	maxElementBytes = 60_000
)

// transactions cuts sorted changes into transactions: one for each phase, or more
// where a phase has so much that the kernel would be busy for too long.
func transactions(changes []*change) [][]*change {
	var out [][]*change
	phase := phases(changes)
	start, weight := 0, 0
	for i, ch := range changes {
		weight += ch.weight()
		if i > start && (phase(ch) != phase(changes[i-1]) || weight > maxWeight && !together(changes[i-1], ch)) {
			out = append(out, changes[start:i])
			start, weight = i, ch.weight()
		}
	}
	if start < len(changes) {
		out = append(out, changes[start:])
	}
	return out
}

// phases returns a change's phase, after joining those that need not be apart.
func phases(changes []*change) func(*change) int {
	var chains, ranges, redone bool
	for _, ch := range changes {
		switch ch.kind {
		case kindChain:
			chains = chains || ch.want
		case kindSet:
			redone = redone || ch.had && ch.want
		case kindElement:
			ranges = ranges || ch.definition.interval()
		}
	}
	return func(ch *change) int {
		switch {
		case redone: // the rules that use a set can't be without it
			return 0
		case !chains && ch.stage <= stageDispatch: // what verdict maps lead to is there
			return stageDispatch.phase()
		case !ranges && ch.stage == stageRules: // the elements that rules find are there with them
			return stageRules.phase() - 1
		}
		return ch.stage.phase()
	}
}

func together(a, b *change) bool {
	return a.kind == kindElement && b.kind == kindElement && a.name == b.name && b.definition.interval()
}

// batch is a transaction as messages. For each message it knows what it is
// about, so that a refusal finds its change.
type batch struct {
	messages []message
	about    [][]mention
}

// mention is a change in a message, whose part begins at an offset of the body.
type mention struct {
	*change
	offset int
}

func (b *batch) add(ch *change, m message) {
	b.messages = append(b.messages, m)
	b.about = append(b.about, []mention{{ch, 0}})
}

// blamed are the changes to which a refusal is due; all, if it is due to none.
// If not exact, all that share the message are blamed.
func (b *batch) blamed(r refusal, exact bool) []mention {
	if r.index < 0 {
		return slices.Concat(b.about...)
	}
	about := b.about[r.index]
	if r.offset <= 0 || !exact {
		return about
	}
	for i := len(about) - 1; i >= 0; i-- {
		if about[i].offset <= r.offset {
			return about[i : i+1]
		}
	}
	return about
}

// prepared makes the messages of each transaction while the kernel works on the
// one before.
func prepared(all [][]*change) iter.Seq2[[]*change, *batch] {
	return func(yield func([]*change, *batch) bool) {
		if len(all) == 0 {
			return
		}
		next := make(chan *batch, 1)
		next <- newBatch(all[0])
		for i, changes := range all {
			b := <-next
			if i+1 < len(all) {
				go func() { next <- newBatch(all[i+1]) }()
			}
			if !yield(changes, b) {
				return
			}
		}
	}
}

// newBatch puts changes in the order that the kernel wants within one
// transaction: what refers goes before what is referred to, what is referred to
// comes before what refers.
func newBatch(changes []*change) *batch {
	b := &batch{}
	var sets, elements, chains []*change
	for _, ch := range changes {
		switch ch.kind {
		case kindTable:
			b.add(ch, message{unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE,
				attributes(nil).text(unix.NFTA_TABLE_NAME, plan.NFTable).u32(unix.NFTA_TABLE_FLAGS, 0)})
		case kindSet:
			sets = append(sets, ch)
		case kindElement:
			elements = append(elements, ch)
		case kindChain:
			chains = append(chains, ch)
		}
	}
	b.elements(elements, unix.NFT_MSG_DELSETELEM, func(ch *change) bool { return ch.had })
	b.removeReferences(chains)
	for _, ch := range sets {
		if ch.had {
			b.add(ch, message{unix.NFT_MSG_DELSET, 0, objectName(unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, ch.name)})
		}
	}
	for _, ch := range chains {
		if ch.rebase || !ch.want && !ch.followed {
			b.add(ch, message{unix.NFT_MSG_DELCHAIN, 0, objectName(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, ch.name)})
		}
	}
	for i, ch := range sets {
		if ch.want {
			b.add(ch, ch.definition.message(ch.name, uint32(i+1)))
		}
	}
	b.elements(elements, unix.NFT_MSG_NEWSETELEM, func(ch *change) bool { return ch.want && !ch.definition.verdicts() })
	b.chains(chains)
	b.elements(elements, unix.NFT_MSG_NEWSETELEM, func(ch *change) bool { return ch.want && ch.definition.verdicts() })
	return b
}

// removeReferences empties the chains that change or go.
func (b *batch) removeReferences(chains []*change) {
	for _, ch := range chains {
		if ch.had && (ch.want || ch.followed) {
			b.add(ch, message{unix.NFT_MSG_DELRULE, 0, objectName(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, ch.name)})
		}
	}
}

// chains makes chains, then their rules, which may jump to any of them.
func (b *batch) chains(chains []*change) {
	for _, ch := range chains {
		if ch.want && (!ch.had || ch.rebase) {
			b.add(ch, ch.chain.base.message(ch.name))
		}
	}
	for _, ch := range chains {
		for _, r := range ch.rules() {
			b.add(ch, r.message(ch.name))
		}
	}
}

// elements adds the messages for those elements that are to be added or
// deleted, as many in one as fit.
func (b *batch) elements(changes []*change, kind uint16, which func(*change) bool) {
	var list attributes
	var about []mention
	var of string
	var flags uint16
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE
	}
	flush := func() {
		if about == nil {
			return
		}
		body := objectName(unix.NFTA_SET_ELEM_LIST_TABLE, unix.NFTA_SET_ELEM_LIST_SET, of)
		head := len(body) + 4
		for i := range about {
			about[i].offset += head
		}
		b.messages = append(b.messages, message{kind, flags, body.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)})
		b.about = append(b.about, about)
		list, about = list[:0], nil // nest has copied it
	}
	for _, ch := range changes {
		if !which(ch) {
			continue
		}
		if ch.name != of || len(about) == maxElements || len(list) > maxElementBytes {
			flush()
			of = ch.name
		}
		about = append(about, mention{ch, len(list)})
		if kind == unix.NFT_MSG_DELSETELEM {
			list = appendElement(list, ch.definition, ch.key, ch.oldElement)
		} else {
			list = appendElement(list, ch.definition, ch.key, ch.newElement)
		}
	}
	flush()
}

// note writes a change that was made into the mirror.
func (m *mirror) note(ch *change) {
	switch ch.kind {
	case kindTable:
		m.table = true
	case kindSet:
		if delete(m.sets, ch.name); ch.want {
			m.sets[ch.name] = &set{*ch.definition, make(map[string]plan.Packed, ch.members)}
		}
	case kindChain:
		switch {
		case ch.want:
			m.chains[ch.name] = &chain{ch.chain.base, ch.chain.rules}
		case ch.followed:
			m.chains[ch.name] = &chain{base: m.chains[ch.name].base}
		default:
			delete(m.chains, ch.name)
		}
	case kindElement:
		s := m.sets[ch.name]
		if ch.want {
			s.elements[ch.key] = ch.newElement
		} else if s != nil {
			delete(s.elements, ch.key)
		}
	}
}
