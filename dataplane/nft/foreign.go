package nft

import (
	"fmt"
	"slices"

	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

// Foreign is a chain that somebody else wrote, as far as it takes to tell what it
// does with a packet.
type Foreign struct {
	Family   byte // NFPROTO_INET, NFPROTO_IPV4 or NFPROTO_IPV6
	Table    string
	Name     string
	Type     string // of a base chain; empty: it is no base chain
	Hook     int    // NF_INET_*
	Priority int32
	Drops    bool // what no rule decides
	Rules    [][]Expression
}

// Expression is a part of a rule: its name and attributes (NFTA_*), the verdict
// that it gives, and the set in which it looks something up.
type Expression struct {
	Name       string
	Attributes []byte
	Verdict    string // accept, drop, return, jump CHAIN or goto CHAIN
	Set        []SetElement
}

// SetElement is an element of a set, or a range; of a map of verdicts with its
// verdict.
type SetElement struct{ First, Last, Verdict string }

// foreignFamilies are those whose chains see packets of IP.
var foreignFamilies = []byte{unix.NFPROTO_INET, unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}

// ReadForeign reads all chains of the calling thread's network namespace that are
// not ours, in the order in which packets pass base chains of a hook.
func ReadForeign() ([]Foreign, error) { return readForeign((*socket).foreign) }

// ReadForeignChains is ReadForeign without the rules.
func ReadForeignChains() ([]Foreign, error) { return readForeign((*socket).foreignChains) }

func readForeign(read func(*socket) ([]Foreign, error)) ([]Foreign, error) {
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer s.close()
	var all []Foreign
	for _, family := range foreignFamilies {
		s.family = family
		chains, err := read(s)
		if err != nil {
			return nil, fmt.Errorf("read others' nftables rules: %w", err)
		}
		all = append(all, chains...)
	}
	slices.SortStableFunc(all, func(a, b Foreign) int { return int(a.Priority) - int(b.Priority) })
	return all, nil
}

// foreignChains reads the chains of the socket's family.
func (s *socket) foreignChains() (chains []Foreign, err error) {
	err = s.list(unix.NFT_MSG_GETCHAIN, nil, func() { chains = nil }, func(a attributes) {
		c := Foreign{Family: s.family, Table: a.get(unix.NFTA_CHAIN_TABLE).asText()}
		if s.family == unix.NFPROTO_INET && c.Table == plan.NFTable {
			return
		}
		var b base
		c.Name, b = parseBase(a)
		if b.kind != "" {
			c.Type, c.Hook, c.Priority, c.Drops = b.kind, b.hook, b.priority, b.policy == 0 // NF_DROP
		}
		chains = append(chains, c)
	})
	return chains, err
}

// foreign reads the chains of the socket's family with their rules.
func (s *socket) foreign() ([]Foreign, error) {
	chains, err := s.foreignChains()
	if err != nil {
		return nil, err
	}
	type name struct{ table, chain string }
	index := map[name]int{}
	for i, c := range chains {
		index[name{c.Table, c.Name}] = i
	}
	sets := map[name][]SetElement{}
	forget := func() {
		for i := range chains {
			chains[i].Rules = nil
		}
	}
	err = s.list(unix.NFT_MSG_GETRULE, nil, forget, func(a attributes) {
		table := a.get(unix.NFTA_RULE_TABLE).asText()
		i, ok := index[name{table, a.get(unix.NFTA_RULE_CHAIN).asText()}]
		if !ok {
			return
		}
		rule := parseExpressions(a.get(unix.NFTA_RULE_EXPRESSIONS))
		for _, e := range rule {
			if set := lookedUpIn(e); set != "" {
				sets[name{table, set}] = nil
			}
		}
		chains[i].Rules = append(chains[i].Rules, rule)
	})
	if err != nil {
		return nil, err
	}
	for n := range sets {
		if sets[n], err = s.foreignSet(n.table, n.chain); err != nil {
			return nil, err
		}
	}
	for _, c := range chains {
		for _, rule := range c.Rules {
			for i, e := range rule {
				rule[i].Set = sets[name{c.Table, lookedUpIn(e)}]
			}
		}
	}
	return chains, nil
}

// parseExpressions copies what is valid only while a listing is read.
func parseExpressions(list attributes) (rule []Expression) {
	for _, e := range list.all() {
		data := e.get(unix.NFTA_EXPR_DATA)
		x := Expression{Name: e.get(unix.NFTA_EXPR_NAME).asText(), Attributes: slices.Clone(data)}
		if x.Name == "immediate" {
			_, x.Verdict = parseData(data.get(unix.NFTA_IMMEDIATE_DATA))
		}
		rule = append(rule, x)
	}
	return rule
}

func lookedUpIn(e Expression) string {
	if e.Name != "lookup" {
		return ""
	}
	return attributes(e.Attributes).get(unix.NFTA_LOOKUP_SET).asText()
}

// foreignSet reads a set, which may be gone by now.
func (s *socket) foreignSet(table, name string) ([]SetElement, error) {
	a, ok, err := s.get(unix.NFT_MSG_GETSET, attributes(nil).text(unix.NFTA_SET_TABLE, table).text(unix.NFTA_SET_NAME, name))
	if err != nil || !ok {
		return nil, err
	}
	_, d := parseDefinition(a)
	d.keySize = int(d.keyLen)
	elements, err := s.elements(table, name, d)
	if err != nil {
		return nil, err
	}
	out := make([]SetElement, 0, len(elements))
	for key, packed := range elements {
		e := packed.Element()
		out = append(out, SetElement{key, max(key, e.End), e.Verdict})
	}
	return out, nil
}
