package nft

import (
	"fmt"
	"maps"
	"slices"

	"github.com/twill-net/twill/plan"
)

// kind is a kind of object.
type kind int

const (
	kindTable kind = iota
	kindSet
	kindElement
	kindChain
)

// stage is the order of changes. It makes before it breaks: what is referred to
// comes before what refers to it, and goes after it.
//
// That alone would not need more than one transaction, but a packet does not see
// a transaction at once. It reads all rules as of the moment when it entered the
// base chain (the kernel keeps two generations of each chain), and looks
// elements up as of the moment of the look-up: a verdict map may lead it to a
// chain that it sees empty, and its old rules may miss the set that went. And
// sets of ranges are looked up in a copy that the kernel replaces only at the end
// of its commit (nft_set_pipapo, and newer kernels' nft_set_rbtree), after rules
// and all other elements. So stages belong to phases, each a transaction of its
// own; see phases for those that are joined.
type stage int

const (
	// Elements that rules of the other time must not see; see separate.
	stageNarrow stage = iota
	// What no packet gets to yet, and members of sets, one by one.
	stageTable
	stageSets
	stageMembers // elements that decide nothing by themselves
	stageChains  // new ones
	stageNewMaps // elements of new verdict maps
	// What packets get to: rules of chains that are there, and then elements of
	// verdict maps, since these may lead to the rules.
	stageRules
	stageUnguard
	stageDispatch
	// What is no longer used, and what may only hold from now on.
	stageWiden // the counterpart of stageNarrow
	stageGuard
	stageFlush
	stageDropSets
	stageDropChains
	stageDropMembers
	stages
)

// phase numbers the transactions.
func (s stage) phase() int {
	switch {
	case s == stageNarrow:
		return 0
	case s <= stageNewMaps:
		return 1
	case s == stageRules:
		return 2
	case s <= stageDispatch:
		return 3
	}
	return 4
}

// change is one object's way from what the kernel has to what is wanted.
type change struct {
	kind  kind
	stage stage
	name  string // of the set or chain
	key   string // of the element

	had, want bool // whether the kernel has it, and whether the plan wants it

	oldElement, newElement plan.Packed
	definition             *definition // of the new set; of the element's set
	members                int         // that the new set will have
	chain                  *compiled   // the new chain; nil: it goes
	rebase                 bool        // the chain has to be made anew
	followed               bool        // another change of the same object comes in a later stage
}

// elementKey is the plan's key of an element.
func (c *change) elementKey() plan.ElementKey { return plan.ElementKey{Set: c.name, Key: c.key} }

// weight estimates how long the kernel is busy with a change, in units of
// about 2 µs.
func (c *change) weight() int {
	switch c.kind {
	case kindChain:
		return 50 + 25*len(c.rules())
	case kindSet:
		return 25
	}
	return 1
}

// rules are those of the new chain; none of one that goes.
func (c *change) rules() []rule {
	if c.chain == nil {
		return nil
	}
	return c.chain.code
}

func weight(changes []*change) (sum int) {
	for _, ch := range changes {
		sum += ch.weight()
	}
	return sum
}

// String says what the change does, for errors.
func (c *change) String() string {
	verb := "write"
	if !c.want {
		verb = "remove"
	}
	switch c.kind {
	case kindTable:
		return fmt.Sprintf("%s table inet %s", verb, plan.NFTable)
	case kindSet:
		return fmt.Sprintf("%s set %s", verb, c.name)
	case kindChain:
		return fmt.Sprintf("%s chain %s", verb, c.name)
	}
	return fmt.Sprintf("%s element %s of set %s", verb, plan.FormatKey(splitTypes(c.definition.keyType), c.key), c.name)
}

// comparison finds the changes that make the plan's dirty keys true.
type comparison struct {
	plan    *plan.Plan
	have    *mirror
	changes []*change
	errors  []error
	redone  map[string]bool // sets that are made anew
	refused map[string]bool // sets that can't be made
	defined map[string]*definition
}

// compare looks at the plan's dirty keys only. Those that are true already it
// marks clean.
func compare(p *plan.Plan, have *mirror) *comparison {
	c := &comparison{plan: p, have: have,
		redone: map[string]bool{}, refused: map[string]bool{}, defined: map[string]*definition{}}
	c.sets()
	c.elements()
	c.chains()
	c.separate()
	if !have.table && p.Sets.Len()+p.Chains.Len() > 0 {
		c.changes = append(c.changes, &change{kind: kindTable, stage: stageTable, want: true})
	}
	c.changes = byStage(c.changes)
	return c
}

// byStage keeps the order within a stage: elements come set by set. It does not
// compare, since most often there are many of one stage.
func byStage(changes []*change) []*change {
	var sorted [stages][]*change
	for _, ch := range changes {
		sorted[ch.stage] = append(sorted[ch.stage], ch)
	}
	return slices.Concat(sorted[:]...)
}

func (c *comparison) sets() {
	for _, name := range slices.Sorted(c.plan.Sets.Dirty()) {
		planned, want := c.plan.Sets.Get(name)
		old, had := c.have.sets[name]
		ch := &change{kind: kindSet, name: name, had: had, want: want, stage: stageSets}
		if !want {
			if !had {
				c.plan.Sets.MarkClean(name)
				continue
			}
			ch.stage = stageDropSets
			c.changes = append(c.changes, ch)
			continue
		}
		d, err := define(planned)
		switch {
		case err != nil:
			c.refused[name] = true
			c.errors = append(c.errors, fmt.Errorf("set %s: %w", name, err))
			continue
		case had && old.same(d):
			c.plan.Sets.MarkClean(name)
			continue
		case had:
			c.redo(name, old)
		}
		ch.definition, ch.members = &d, c.plan.Elements.LenOf(name)
		c.changes = append(c.changes, ch)
	}
}

// redo notes that a set of another type has to be deleted first: with it go
// its elements, and the rules that use it have to be written again.
func (c *comparison) redo(name string, old *set) {
	c.redone[name] = true
	for key := range old.elements {
		c.plan.Elements.MarkDirty(plan.ElementKey{Set: name, Key: key})
	}
	for chain, planned := range c.plan.Chains.All() {
		if slices.ContainsFunc(planned.Rules, func(r plan.Rule) bool { return slices.Contains(setsOf(r), name) }) {
			c.plan.Chains.MarkDirty(chain)
		}
	}
}

// setsOf lists the sets that a rule uses.
func setsOf(r plan.Rule) (names []string) {
	for _, s := range r.Statements {
		switch s := s.(type) {
		case plan.InSet:
			names = append(names, s.Set)
		case plan.Dispatch:
			names = append(names, s.Map)
		case plan.SetMark:
			names = append(names, s.Map)
		case plan.UpdateMap:
			names = append(names, s.Map)
		case plan.DeleteFromMap:
			names = append(names, s.Map)
		case plan.DNAT:
			names = append(names, s.Map)
		}
	}
	return names
}

// definition returns a wanted set's definition.
func (c *comparison) definition(name string) (*definition, bool) {
	if d, ok := c.defined[name]; ok {
		return d, true
	}
	planned, ok := c.plan.Sets.Get(name)
	if !ok {
		return nil, false
	}
	d, err := define(planned)
	if err != nil {
		return nil, false
	}
	c.defined[name] = &d
	return &d, true
}

func (c *comparison) elements() {
	first := len(c.changes)
	for k := range c.plan.Elements.Dirty() {
		if err := c.element(k); err != nil {
			c.errors = append(c.errors, err)
		}
	}
	gains := map[string]bool{}
	for _, ch := range c.changes[first:] {
		if ch.want && ch.definition.interval() {
			gains[ch.name] = true
		}
	}
	for _, ch := range c.changes[first:] {
		ch.stage = c.elementStage(ch, gains[ch.name])
	}
}

func (c *comparison) element(k plan.ElementKey) error {
	planned, want := c.plan.Elements.Packed(k)
	old, had := c.have.element(k)
	d, ok := c.definition(k.Set)
	switch {
	case !want && !had:
		c.plan.Elements.MarkClean(k)
		return nil
	case !want && !ok, c.refused[k.Set]:
		return nil // it goes with its set; or the set's error says it all
	case !ok:
		return fmt.Errorf("element %x of set %s: the set is not in the plan", k.Key, k.Set)
	}
	had = had && !c.redone[k.Set]
	ch := &change{kind: kindElement, name: k.Set, key: k.Key, had: had, want: want, definition: d, oldElement: old}
	if want {
		var err error
		if ch.newElement, err = checkElement(d, k.Key, planned); err != nil {
			return fmt.Errorf("element %s of set %s: %w", plan.FormatKey(splitTypes(d.keyType), k.Key), k.Set, err)
		}
	}
	if had == want && (!had || old == ch.newElement) {
		c.plan.Elements.MarkClean(k)
		return nil
	}
	c.changes = append(c.changes, ch)
	return nil
}

// elementStage: removals from a set of ranges stay with its additions, if it
// gains any: they may overlap.
func (c *comparison) elementStage(ch *change, gains bool) stage {
	d := ch.definition
	switch {
	case d.role == plan.Guards && ch.want:
		return stageGuard
	case d.verdicts() && c.have.sets[ch.name] == nil:
		return stageNewMaps
	case d.role == plan.Guards:
		return stageUnguard
	case d.verdicts():
		return stageDispatch
	case ch.want || d.interval() && gains:
		return stageMembers
	}
	return stageDropMembers
}

// separate keeps rules and elements of different times apart. A set that permits
// may pass from one rule to another that permits something else: elements that
// leave a set which new rules use go before them, and elements that come to a
// set which old rules use come after the last packet could get to these. So for
// a moment there may be too few of them, and never too many.
func (c *comparison) separate() {
	if len(c.have.chains) == 0 {
		return
	}
	before, after := c.usedByChanged()
	for _, ch := range c.changes {
		if ch.kind != kindElement || ch.definition.role != plan.Permits || c.have.sets[ch.name] == nil {
			continue
		}
		old, now := before[ch.name], after[ch.name]
		switch {
		case !ch.want && now:
			ch.stage = stageNarrow
		case ch.want && ch.had && now:
			goes := *ch
			goes.want, goes.newElement, goes.stage, goes.followed = false, "", stageNarrow, true
			c.changes = append(c.changes, &goes)
			ch.had = false
		}
		if ch.want && old {
			ch.stage = stageWiden
		}
	}
}

// usedByChanged are the sets that the old rules of chains that change or go use,
// and those that the new rules of chains that change or come use.
func (c *comparison) usedByChanged() (before, after map[string]bool) {
	before, after = map[string]bool{}, map[string]bool{}
	for _, ch := range c.changes {
		if ch.kind != kindChain {
			continue
		}
		if old := c.have.chains[ch.name]; old != nil {
			for _, name := range old.sets() {
				before[name] = true
			}
		}
		if ch.want {
			planned, _ := c.plan.Chains.Get(ch.name)
			for _, r := range planned.Rules {
				for _, name := range setsOf(r) {
					after[name] = true
				}
			}
		}
	}
	return before, after
}

func (c *comparison) chains() {
	compiler := compiler{set: c.plan.Sets.Get}
	written := map[string]*change{}
	for _, name := range slices.Sorted(c.plan.Chains.Dirty()) {
		planned, want := c.plan.Chains.Get(name)
		old, had := c.have.chains[name]
		if !want {
			c.removeChain(name, old)
			continue
		}
		compiled, err := compiler.compileChain(planned)
		if err != nil {
			c.errors = append(c.errors, fmt.Errorf("chain %s: %w", name, err))
			continue
		}
		uses := func(r plan.Rule) bool {
			return slices.ContainsFunc(setsOf(r), func(set string) bool { return c.redone[set] })
		}
		if had && old.equal(compiled.chain) && !slices.ContainsFunc(planned.Rules, uses) {
			c.plan.Chains.MarkClean(name)
			continue
		}
		ch := &change{kind: kindChain, stage: stageChains, name: name, had: had, want: true,
			chain: &compiled, rebase: had && old.base != compiled.base}
		if had {
			ch.stage = stageRules
		}
		written[name] = ch
	}
	c.changes = append(c.changes, calleesFirst(written)...)
}

func (c *comparison) removeChain(name string, old *chain) {
	if old == nil {
		c.plan.Chains.MarkClean(name)
		return
	}
	// Removed chains may refer to each other: all are emptied first.
	if len(old.rules) > 0 {
		c.changes = append(c.changes, &change{kind: kindChain, stage: stageFlush, name: name, had: true, followed: true})
	}
	c.changes = append(c.changes, &change{kind: kindChain, stage: stageDropChains, name: name, had: true})
}

// calleesFirst sorts chains so that each comes after those it jumps to.
func calleesFirst(chains map[string]*change) []*change {
	var sorted []*change
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		ch := chains[name]
		if ch == nil || seen[name] {
			return
		}
		seen[name] = true
		for _, callee := range ch.chain.callees {
			visit(callee)
		}
		sorted = append(sorted, ch)
	}
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		visit(name)
	}
	return sorted
}
