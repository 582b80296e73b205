package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

// Kernel is our table in the kernel of the network namespace in which it was
// opened. Its methods may be called concurrently.
type Kernel struct {
	log    *slog.Logger
	socket *socket
	events *socket

	applying sync.Mutex // holds socket and what follows
	have     *mirror
	commits  uint32 // transactions that the kernel took from us
	// What the kernel refused in the last Apply, even though the table had been
	// read again: to see that refused once more is no reason to read it again.
	refused, refusedNow map[string]bool

	drifts atomic.Uint64 // how often Watch saw another program change the table

	mu     sync.Mutex
	doubts doubts
}

// Open connects to the kernel of the calling thread's network namespace, which
// needs CAP_NET_ADMIN. From here on others' changes are noted, to be told by
// Watch.
func Open(log *slog.Logger) (*Kernel, error) {
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	events, err := openSocket()
	if err == nil {
		err = events.subscribe(s.port)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	k := &Kernel{log: log, socket: s, events: events, have: newMirror()}
	k.Resync()
	return k, nil
}

// Close ends the connections. What is in the kernel stays. Watch must have
// returned.
func (k *Kernel) Close() error {
	k.socket.close()
	k.events.close()
	return nil
}

// Resync forgets what is believed about the kernel: the next Apply reads all of
// our table.
func (k *Kernel) Resync() { k.doubt(doubts{all: true}) }

func (k *Kernel) doubt(d doubts) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.doubts.sets == nil {
		k.doubts = newDoubts()
	}
	k.doubts.add(d)
}

// Apply makes the plan's chains, sets and elements true and marks them clean.
// It looks at dirty keys only, but for what it has reason to doubt, and counts
// the objects that it wrote or removed. Changes are made before others are
// broken, in as few transactions as that takes (see stage), none of which keeps
// the kernel busy for more than about 50 ms.
//
// An object that can't be written stays dirty and is named in the error, which
// joins one error for each; all others are written nevertheless.
func (k *Kernel) Apply(p *plan.Plan) (writes int, err error) {
	k.applying.Lock()
	defer k.applying.Unlock()
	k.refused, k.refusedNow = k.refusedNow, map[string]bool{}
	writes, again, err := k.attempt(p, false)
	if again {
		// Somebody may have changed the table since we looked, so the first
		// refusal says only that it has to be read again.
		k.log.Debug("reading the nftables table again", "because", err)
		k.Resync()
		var more int
		more, _, err = k.attempt(p, true)
		writes += more
	}
	return writes, err
}

func (k *Kernel) attempt(p *plan.Plan, last bool) (writes int, again bool, err error) {
	if err := k.readDoubtful(p); err != nil {
		return 0, false, err
	}
	return k.write(p, last)
}

// readDoubtful corrects the mirror where it may be wrong, and marks dirty what
// was believed and is not so, and what is there and was not believed.
func (k *Kernel) readDoubtful(p *plan.Plan) error {
	k.mu.Lock()
	d := k.doubts
	k.doubts = newDoubts()
	k.mu.Unlock()
	if !d.any() {
		return nil
	}
	if err := k.read(p, d); err != nil {
		k.Resync() // part of the mirror may be gone
		return err
	}
	return nil
}

func (k *Kernel) read(p *plan.Plan, d doubts) error {
	if d.all {
		have, err := readTable(k.socket)
		if err != nil {
			return err
		}
		markAll(p)
		markHad(p, have)
		k.have = have
		return nil
	}
	for name := range d.sets {
		before := k.have.sets[name]
		if err := k.have.readSet(k.socket, name); err != nil {
			return err
		}
		p.Sets.MarkDirty(name)
		markDifferent(p, name, before, k.have.sets[name])
	}
	for name := range d.chains {
		if err := k.have.readChain(k.socket, name); err != nil {
			return err
		}
		p.Chains.MarkDirty(name)
	}
	return nil
}

// markAll marks all that is wanted.
func markAll(p *plan.Plan) {
	for name := range p.Sets.All() {
		p.Sets.MarkDirty(name)
	}
	for name := range p.Chains.All() {
		p.Chains.MarkDirty(name)
	}
	for key := range p.Elements.All() {
		p.Elements.MarkDirty(key)
	}
}

// markHad marks all that is there.
func markHad(p *plan.Plan, have *mirror) {
	for name := range have.chains {
		p.Chains.MarkDirty(name)
	}
	for name, s := range have.sets {
		p.Sets.MarkDirty(name)
		markDifferent(p, name, nil, s)
	}
}

// markDifferent marks the elements of a set that are not what they were
// believed to be.
func markDifferent(p *plan.Plan, name string, before, now *set) {
	if before == nil {
		before = &set{}
	}
	if now == nil {
		now = &set{}
	}
	for key, e := range before.elements {
		if got, ok := now.elements[key]; !ok || got != e {
			p.Elements.MarkDirty(plan.ElementKey{Set: name, Key: key})
		}
	}
	for key := range now.elements {
		if _, ok := before.elements[key]; !ok {
			p.Elements.MarkDirty(plan.ElementKey{Set: name, Key: key})
		}
	}
}

// unheardWeight is from which weight on changes are written without being told
// of, which halves what they cost: as long as anybody listens, the kernel makes a
// notification of each element.
const unheardWeight = maxWeight / 10

// write writes what differs. If the kernel refuses something and this is not
// the last attempt, it stops and asks for another.
func (k *Kernel) write(p *plan.Plan, last bool) (writes int, again bool, err error) {
	c := compare(p, k.have)
	if last || weight(c.changes) < unheardWeight {
		return k.writeAll(p, c, last)
	}
	before, err := k.socket.generation()
	if err != nil {
		return 0, false, err
	}
	k.commits = 0
	if err := k.events.listen(false); err != nil {
		return 0, false, err
	}
	writes, again, err = k.writeAll(p, c, last)
	if err := k.events.listen(true); err != nil {
		return writes, false, err
	}
	// Each transaction is a generation: if there were more than ours, we have
	// missed somebody else's.
	now, genErr := k.socket.generation()
	if err == nil && (genErr != nil || now-before != k.commits) {
		return writes, true, errors.New("somebody else may have changed it meanwhile")
	}
	return writes, again, err
}

func (k *Kernel) writeAll(p *plan.Plan, c *comparison, last bool) (writes int, again bool, err error) {
	var busy []*change
	for changes, b := range prepared(transactions(c.changes)) {
		r, err := k.commit(p, changes, b, last)
		writes += r.writes
		busy = append(busy, r.busy...)
		c.errors = append(c.errors, r.errors...)
		if err != nil {
			return writes, !last, err
		}
	}
	if len(busy) > 0 {
		// What referred to these may be gone for good only now, after the
		// transaction that removed it (kernels before 6.2 are late).
		r, err := k.commit(p, busy, newBatch(busy), true)
		writes += r.writes
		for _, ch := range r.busy {
			r.errors = append(r.errors, fmt.Errorf("%s: still in use: %w", ch, unix.EBUSY))
		}
		c.errors = append(c.errors, append(r.errors, err)...)
	}
	return writes, false, joinErrors(c.errors)
}

// result is what became of a transaction.
type result struct {
	writes int
	busy   []*change // removals that came too early
	errors []error   // changes that were left out, and why
}

// exactRounds is how often a refused transaction is tried again without just
// those elements that the kernel named. It names one in each message and round;
// if there are many, all that share their messages wait for the next Apply.
const exactRounds = 16

// commit writes changes, of which b is made, in one transaction. What can't be removed yet is left
// out. If the kernel refuses more than that, commit fails; or, at the last
// attempt, leaves out what is refused, until the kernel takes the rest.
func (k *Kernel) commit(p *plan.Plan, changes []*change, b *batch, last bool) (r result, err error) {
	for round := 0; len(changes) > 0; round++ {
		if round > 0 {
			b = newBatch(changes)
		}
		refusals, err := k.socket.commit(b.messages)
		if err != nil {
			k.Resync()
			return r, err
		}
		if len(refusals) == 0 {
			k.commits++
			for _, ch := range changes {
				k.settle(p, ch)
			}
			r.writes += len(changes)
			return r, nil
		}
		refused := map[*change]error{}
		for _, f := range refusals {
			for _, m := range b.blamed(f, round < exactRounds) {
				refused[m.change] = f.err
			}
		}
		var rest []*change
		for _, ch := range changes {
			why := refused[ch]
			if why == nil {
				rest = append(rest, ch)
				continue
			}
			if why == unix.EBUSY && !ch.want && ch.kind != kindElement {
				r.busy = append(r.busy, ch)
				continue
			}
			what := ch.String()
			if !last && !k.refused[what] {
				return r, fmt.Errorf("%s: %w", what, why)
			}
			k.refusedNow[what] = true
			r.errors = append(r.errors, fmt.Errorf("%s: %w", what, why))
		}
		changes = rest
	}
	return r, nil
}

// settle notes that a change is made.
func (k *Kernel) settle(p *plan.Plan, ch *change) {
	old := k.have.sets[ch.name]
	k.have.note(ch)
	switch {
	case ch.followed:
	case ch.kind == kindSet:
		p.Sets.MarkClean(ch.name)
		if !ch.want {
			cleanWith(p, ch.name, old)
		}
	case ch.kind == kindChain:
		p.Chains.MarkClean(ch.name)
	case ch.kind == kindElement:
		p.Elements.MarkClean(ch.elementKey())
	}
}

// cleanWith marks clean the unwanted elements that went with their set.
func cleanWith(p *plan.Plan, name string, old *set) {
	for key := range old.elements {
		k := plan.ElementKey{Set: name, Key: key}
		if _, want := p.Elements.Get(k); !want {
			p.Elements.MarkClean(k)
		}
	}
}

// maxErrors bounds an error's length when thousands of objects are refused for
// one reason.
const maxErrors = 20

func joinErrors(errs []error) error {
	if n := len(errs); n > maxErrors {
		errs = append(errs[:maxErrors:maxErrors], fmt.Errorf("and %d more", n-maxErrors))
	}
	return errors.Join(errs...)
}

// Watch tells of changes that somebody else made to our table: it notes what
// they concern and calls drift, which should see to it that Apply is called
// soon; that mends them. Elements that packets add to dynamic sets are nobody's
// change. It calls foreign when another table was changed, but for changes while
// a big transaction of ours is committed. Neither may block. It returns nil when
// ctx ends.
func (k *Kernel) Watch(ctx context.Context, drift, foreign func()) error {
	return k.events.watch(ctx, func(d doubts) {
		if !d.lost {
			k.drifts.Add(1)
		}
		k.doubt(d)
		drift()
	}, foreign)
}

// Drifts is how often Watch has seen another program change our table.
func (k *Kernel) Drifts() uint64 { return k.drifts.Load() }

// Cleanup removes our table, if there is one, from the calling thread's network
// namespace and says what it removed.
func Cleanup(log *slog.Logger) (removed []string, err error) {
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer s.close()
	table := attributes(nil).text(unix.NFTA_TABLE_NAME, plan.NFTable)
	if _, ok, err := s.get(unix.NFT_MSG_GETTABLE, table); err != nil || !ok {
		return nil, err
	}
	refusals, err := s.commit([]message{{unix.NFT_MSG_DELTABLE, 0, table}})
	if len(refusals) > 0 {
		err = refusals[0].err
	}
	if err != nil {
		return nil, fmt.Errorf("remove nftables table inet %s: %w", plan.NFTable, err)
	}
	log.Info("removed nftables table", "family", "inet", "table", plan.NFTable)
	return []string{"nftables table inet " + plan.NFTable}, nil
}
