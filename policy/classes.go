package policy

import (
	"bytes"
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/twill-net/twill/api"
)

// classifier compiles one group. The (protocol, port) line is cut wherever a
// rule's range of ports starts or ends; the pieces that the same rules hold for
// are compared by whom they allow, and those that allow the same are one class.
//
// The cost is the number of pieces times that of uniting the peers of the rules
// that hold there: a group whose rules name a thousand single ports for
// different peers has a thousand classes.
type classifier struct {
	c           *Compiler
	rules       []*compiledRule
	base        ruleSet // the rules without ports: they hold for every piece
	definitions map[string]definition
	byRules     map[string]int // rules that hold → class, or noClass
	byContent   map[string]int // whom it allows → class, or noClass
	classes     []Class
	holding     []ruleSet // by class
}

// noClass stands for ports that are no better off than the rest.
const noClass = -1

// ruleSet is a set of indices into classifier.rules, as bits.
type ruleSet []uint64

func (s ruleSet) set(i int)   { s[i/64] |= 1 << (i % 64) }
func (s ruleSet) clear(i int) { s[i/64] &^= 1 << (i % 64) }
func (s ruleSet) add(o ruleSet) {
	for i := range s {
		s[i] |= o[i]
	}
}

func (s ruleSet) key() string {
	var b strings.Builder
	for _, w := range s {
		for i := range 8 {
			b.WriteByte(byte(w >> (8 * i)))
		}
	}
	return b.String()
}

func (c *Compiler) compileGroup(g *group) (*Group, map[string]definition) {
	k := &classifier{c: c, definitions: map[string]definition{}, byRules: map[string]int{}, byContent: map[string]int{}}
	keys := make([]api.Key, 0, len(g.policies))
	for _, cp := range g.policies {
		k.rules = append(k.rules, cp.rules[g.direction]...)
		keys = append(keys, cp.key)
	}
	out := &Group{Name: g.name, Direction: g.direction, Comment: listed(keys)}
	k.base = k.noRules()
	for i, r := range k.rules {
		if r.allPorts {
			k.base.set(i)
		}
	}
	var content string
	out.Rest.Peers, content = k.unite(k.base)
	out.Rest.Comment = k.contributors(k.base)
	k.byContent[content] = noClass
	for _, proto := range []uint8{TCP, UDP, SCTP} {
		out.Ports = append(out.Ports, k.cut(proto, g)...)
	}
	for i := range k.classes {
		k.classes[i].Comment = k.contributors(k.holding[i])
	}
	out.Classes = k.classes
	if g.direction == Egress {
		out.NamedPorts = k.namedPorts(out.Rest)
	}
	return out, k.definitions
}

func (k *classifier) noRules() ruleSet { return make(ruleSet, (len(k.rules)+63)/64) }

// edge is where a rule starts or stops to hold.
type edge struct {
	at    uint32
	rule  int
	delta int
}

// cut cuts one protocol's ports into pieces and gives them classes.
func (k *classifier) cut(proto uint8, g *group) []PortClass {
	edges := make([]edge, 0, 2*len(k.rules))
	for i, r := range k.rules {
		for _, p := range r.portsOf(g) {
			if p.Protocol == proto {
				edges = append(edges, edge{uint32(p.First), i, 1}, edge{uint32(p.Last) + 1, i, -1})
			}
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	var out []PortClass
	holds, active := make([]int, len(k.rules)), k.noRules()
	for i, e := range edges {
		if holds[e.rule] += e.delta; holds[e.rule] > 0 {
			active.set(e.rule)
		} else {
			active.clear(e.rule)
		}
		if i+1 == len(edges) || edges[i+1].at == e.at {
			continue
		}
		class := k.classOf(active)
		if class == noClass {
			continue
		}
		first, last := uint16(e.at), uint16(edges[i+1].at-1)
		if n := len(out); n > 0 && out[n-1].Class == class && uint32(out[n-1].Last)+1 == e.at {
			out[n-1].Last = last
			continue
		}
		out = append(out, PortClass{proto, first, last, class})
	}
	return out
}

// portsOf are the rule's ports as ranges of numbers. In ingress rules names are
// those of the selected pod's ports; in egress rules they are the peer's, see
// namedPorts.
func (r *compiledRule) portsOf(g *group) []Port {
	if g.direction == Egress || len(r.named) == 0 {
		return r.ports
	}
	out := slices.Clone(r.ports)
	for _, named := range r.named {
		for _, p := range g.ports {
			if p.Name == named.Name && p.Protocol == named.Protocol {
				out = append(out, Port{Protocol: p.Protocol, First: p.Port, Last: p.Port})
			}
		}
	}
	return out
}

func (k *classifier) classOf(active ruleSet) int {
	key := active.key()
	class, known := k.byRules[key]
	if known {
		return class
	}
	holding := slices.Clone(active)
	holding.add(k.base)
	peers, content := k.unite(holding)
	class, known = k.byContent[content]
	switch {
	case !known:
		class = len(k.classes)
		k.byContent[content] = class
		k.classes = append(k.classes, Class{Peers: peers})
		k.holding = append(k.holding, holding)
	case class != noClass:
		k.holding[class].add(holding)
	}
	k.byRules[key] = class
	return class
}

// unite returns whom the rules allow together, and a text that is the same for
// whatever allows the same.
func (k *classifier) unite(holding ruleSet) (out [2]Allowed, content string) {
	var selections []*selection
	var blocks netipx.IPSetBuilder
	seen := map[selectionID]struct{}{}
	for i, r := range k.rules {
		if holding[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		if r.everyone {
			return [2]Allowed{{Any: true}, {Any: true}}, "everyone"
		}
		for _, s := range r.selections {
			if _, twice := seen[s.id]; !twice {
				seen[s.id] = struct{}{}
				selections = append(selections, s)
			}
		}
		for _, r := range r.ranges {
			blocks.AddRange(r)
		}
	}
	named, broad := split(selections)
	literals, ranges, whole := sortRanges(mergedRanges(&blocks))
	for f := range out {
		f := Family(f)
		switch {
		case whole[f]:
			out[f].Any = true
		case k.c.families[f]:
			for _, def := range []definition{
				{kind: Addresses, family: f, selections: named, literals: literals[f]},
				{kind: Addresses, family: f, selections: broad},
				{kind: Ranges, family: f, ranges: ranges[f]},
			} {
				if len(def.selections)+len(def.literals)+len(def.ranges) > 0 {
					out[f].Sets = append(out[f].Sets, k.define(def))
				}
			}
		}
	}
	if whole == [2]bool{true, true} {
		return out, "everyone"
	}
	return out, fmt.Sprint(out)
}

// split leaves out selections that another one covers, and parts those that
// name pods from the broad ones of all pods of some namespaces. Broad ones have
// many members and are alike in many groups, so they get sets of their own: a
// change among the others then leaves these alone.
func split(selections []*selection) (named, broad []*selection) {
	for _, s := range selections {
		if s.pods.Everything() {
			broad = append(broad, s)
		}
	}
	if i := slices.IndexFunc(broad, func(s *selection) bool { return s.namespaces.Everything() }); i >= 0 {
		return nil, broad[i : i+1]
	}
	inBroad := map[string]bool{}
	for _, s := range broad {
		inBroad[s.namespaces.String()] = true
	}
	for _, s := range selections {
		if !inBroad[s.namespaces.String()] {
			named = append(named, s)
		}
	}
	return named, broad
}

// sortRanges parts merged ranges by family into single addresses, ranges, and
// whole address spaces.
func sortRanges(merged []netipx.IPRange) (literals [2][]netip.Addr, ranges [2][]netipx.IPRange, whole [2]bool) {
	for _, r := range merged {
		f := FamilyOf(r.From())
		switch {
		case r.From() == r.To():
			literals[f] = append(literals[f], r.From())
		case r == wholeSpace[f]:
			whole[f] = true
		default:
			ranges[f] = append(ranges[f], r)
		}
	}
	return literals, ranges, whole
}

var wholeSpace = [2]netipx.IPRange{
	netipx.RangeOfPrefix(netip.MustParsePrefix("0.0.0.0/0")),
	netipx.RangeOfPrefix(netip.MustParsePrefix("::/0")),
}

// define completes a definition and remembers that the group needs it. Until all
// names are known, a group refers to its sets by their keys.
func (k *classifier) define(def definition) string {
	slices.SortFunc(def.selections, func(a, b *selection) int { return bytes.Compare(a.id[:], b.id[:]) })
	def.seal()
	k.definitions[def.key] = def
	return def.key
}

// namedPorts are the sets of what egress rules with named ports allow: the name
// is looked up at the peer, so it gives addresses with ports.
func (k *classifier) namedPorts(rest Class) (names [2]string) {
	def := definition{kind: AddressPorts}
	seenTerms, seenPeers := map[itemID]bool{}, map[selectionID]bool{}
	add := func(t term) {
		if !seenTerms[t.id] {
			seenTerms[t.id] = true
			def.terms = append(def.terms, t)
		}
		if !seenPeers[t.peer.id] {
			seenPeers[t.peer.id] = true
			def.selections = append(def.selections, t.peer)
		}
	}
	for _, r := range k.rules {
		for _, port := range r.named {
			if r.everyone {
				add(newTerm(k.c.everyPod, nil, port))
			}
			if len(r.ranges) > 0 {
				add(newTerm(k.c.everyPod, r.ranges, port))
			}
			for _, s := range r.selections {
				add(newTerm(s, nil, port))
			}
		}
	}
	slices.SortFunc(def.terms, func(a, b term) int { return bytes.Compare(a.id[:], b.id[:]) })
	for f := range names {
		if len(def.terms) > 0 && k.c.families[f] && !rest.Peers[f].Any {
			def.family = Family(f)
			names[f] = k.define(def)
		}
	}
	return names
}

// contributors names the policies whose rules are in the set.
func (k *classifier) contributors(holding ruleSet) string {
	var keys []api.Key
	for i, word := range holding {
		for ; word != 0; word &= word - 1 {
			keys = append(keys, k.rules[i*64+bits.TrailingZeros64(word)].policy.key)
		}
	}
	return listed(slices.Compact(keys))
}
