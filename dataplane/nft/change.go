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

// stage is the order of changes that do not fit into one transaction: what is
// referred to comes before what refers to it, dispatch comes last, and removals
// go the other way round. So every state between is whole.
type stage int

const (
	stageTable stage = iota
	stageSets
	stageMembers // elements that decide nothing by themselves
	stageChains
	stageDispatch   // elements of verdict maps
	stageUndispatch // removals begin
	stageFlush
	stageDropSets
	stageDropChains
	stageDropMembers
)

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
	flushOnly              bool        // of a chain that is removed afterwards
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
	if !have.table && p.Sets.Len()+p.Chains.Len() > 0 {
		c.changes = append(c.changes, &change{kind: kindTable, stage: stageTable, want: true})
	}
	c.changes = byStage(c.changes)
	return c
}

// byStage keeps the order within a stage: elements come set by set. It does not
// compare, since most often there are many of one stage.
func byStage(changes []*change) []*change {
	var stages [stageDropMembers + 1][]*change
	for _, ch := range changes {
		stages[ch.stage] = append(stages[ch.stage], ch)
	}
	return slices.Concat(stages[:]...)
}

// whole says whether the changes have to be one transaction, whatever it costs.
// If a set is made anew, the rules that use it can't be without it. And if a set
// that is there gains members while rules change, it may have passed from one
// rule to another: it must not be the one's still and have the other's members.
func (c *comparison) whole() bool {
	gains, rules := false, false
	for _, ch := range c.changes {
		switch {
		case ch.kind == kindChain && ch.stage == stageChains && ch.had:
			rules = true
		case ch.kind == kindElement && ch.stage == stageMembers && ch.want && c.have.sets[ch.name] != nil:
			gains = true
		}
	}
	return len(c.redone) > 0 || gains && rules
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
	for k := range c.plan.Elements.Dirty() {
		if err := c.element(k); err != nil {
			c.errors = append(c.errors, err)
		}
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
	ch.stage = elementStage(d, want)
	c.changes = append(c.changes, ch)
	return nil
}

// elementStage: in a set of ranges, removals stay with the additions, which may
// overlap them.
func elementStage(d *definition, want bool) stage {
	switch {
	case d.verdicts() && (want || d.interval()):
		return stageDispatch
	case d.verdicts():
		return stageUndispatch
	case want || d.interval():
		return stageMembers
	}
	return stageDropMembers
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
		written[name] = &change{kind: kindChain, stage: stageChains, name: name, had: had, want: true,
			chain: &compiled, rebase: had && old.base != compiled.base}
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
		c.changes = append(c.changes, &change{kind: kindChain, stage: stageFlush, name: name, had: true, flushOnly: true})
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
