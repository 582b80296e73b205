package nft

import (
	"errors"
	"fmt"
	"maps"

	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

// mirror is what we believe the kernel to have in our table.
type mirror struct {
	table  bool
	sets   map[string]*set
	chains map[string]*chain
}

// set is a set with its elements by key. Those of dynamic sets come and go
// with packets: they are not mirrored.
type set struct {
	definition
	elements map[string]plan.Packed
}

func newMirror() *mirror {
	return &mirror{sets: map[string]*set{}, chains: map[string]*chain{}}
}

// element returns an element that is in the kernel.
func (m *mirror) element(k plan.ElementKey) (plan.Packed, bool) {
	s, ok := m.sets[k.Set]
	if !ok {
		return "", false
	}
	e, ok := s.elements[k.Key]
	return e, ok
}

// doubts are the objects whose state in the kernel may differ from the mirror.
type doubts struct {
	all    bool
	lost   bool // notifications were lost, perhaps none about our table
	sets   map[string]struct{}
	chains map[string]struct{}
}

func newDoubts() doubts {
	return doubts{sets: map[string]struct{}{}, chains: map[string]struct{}{}}
}

func (d doubts) any() bool { return d.all || len(d.sets)+len(d.chains) > 0 }

func (d *doubts) add(o doubts) {
	d.all = d.all || o.all
	maps.Copy(d.sets, o.sets)
	maps.Copy(d.chains, o.chains)
}

// readTable reads all of our table.
func readTable(s *socket) (*mirror, error) {
	m := newMirror()
	table, ok, err := s.get(unix.NFT_MSG_GETTABLE, attributes(nil).text(unix.NFTA_TABLE_NAME, plan.NFTable))
	if err != nil {
		return nil, fmt.Errorf("read table inet %s: %w", plan.NFTable, err)
	}
	if !ok {
		return m, nil
	}
	// A dormant table is there and does nothing: it has to be written again.
	m.table = table.get(unix.NFTA_TABLE_FLAGS).asU32()&unix.NFT_TABLE_F_DORMANT == 0
	if err := m.readChains(s); err != nil {
		return nil, err
	}
	ours := attributes(nil).text(unix.NFTA_SET_TABLE, plan.NFTable)
	err = s.list(unix.NFT_MSG_GETSET, ours, func() { clear(m.sets) }, func(a attributes) {
		// Sets without a name belong to a rule, and go with it.
		if name, d := parseDefinition(a); d.flags&unix.NFT_SET_ANONYMOUS == 0 {
			m.sets[name] = &set{d, map[string]plan.Packed{}}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	for name, set := range m.sets {
		if set.elements, err = readElements(s, name, set.definition); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *mirror) readChains(s *socket) error {
	ours := attributes(nil).text(unix.NFTA_CHAIN_TABLE, plan.NFTable)
	// Kernels do not filter chains by table.
	err := s.list(unix.NFT_MSG_GETCHAIN, ours, func() { clear(m.chains) }, func(a attributes) {
		if a.get(unix.NFTA_CHAIN_TABLE).asText() == plan.NFTable {
			name, b := parseBase(a)
			m.chains[name] = &chain{base: b}
		}
	})
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	forget := func() {
		for _, c := range m.chains {
			c.rules = nil
		}
	}
	err = s.list(unix.NFT_MSG_GETRULE, attributes(nil).text(unix.NFTA_RULE_TABLE, plan.NFTable), forget, func(a attributes) {
		if name, text := parseRule(a); m.chains[name] != nil {
			m.chains[name].rules = append(m.chains[name].rules, text)
		}
	})
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	return nil
}

// readSet reads one set into the mirror.
func (m *mirror) readSet(s *socket, name string) error {
	delete(m.sets, name)
	a, ok, err := s.get(unix.NFT_MSG_GETSET, objectName(unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, name))
	if err != nil {
		return fmt.Errorf("read set %s: %w", name, err)
	}
	if !ok {
		return nil
	}
	_, d := parseDefinition(a)
	if d.flags&unix.NFT_SET_ANONYMOUS != 0 {
		return nil
	}
	elements, err := readElements(s, name, d)
	if err == nil {
		m.sets[name] = &set{d, elements}
	}
	return err
}

func readElements(s *socket, name string, d definition) (map[string]plan.Packed, error) {
	if d.dynamic() {
		return map[string]plan.Packed{}, nil
	}
	return s.elements(plan.NFTable, name, d)
}

// elements lists a set's elements. The kernel goes on with a hash table where it
// was by number: if the table grew between two parts of the list, which takes a
// moment after many elements were added, some come twice and as many not at all,
// and no flag tells of it.
func (s *socket) elements(table, name string, d definition) (map[string]plan.Packed, error) {
	var l *listing
	which := attributes(nil).text(unix.NFTA_SET_ELEM_LIST_TABLE, table).text(unix.NFTA_SET_ELEM_LIST_SET, name)
	for range dumpTries {
		err := s.list(unix.NFT_MSG_GETSETELEM, which, func() { l = newListing(d) }, func(a attributes) { l.add(a) })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("list the elements of set %s: %w", name, err)
		}
		if !l.twice {
			break
		}
	}
	return l.finish(), nil
}

// readChain reads one chain into the mirror.
func (m *mirror) readChain(s *socket, name string) error {
	delete(m.chains, name)
	a, ok, err := s.get(unix.NFT_MSG_GETCHAIN, objectName(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, name))
	if err != nil {
		return fmt.Errorf("read chain %s: %w", name, err)
	}
	if !ok {
		return nil
	}
	_, b := parseBase(a)
	c := &chain{base: b}
	err = s.list(unix.NFT_MSG_GETRULE, objectName(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, name),
		func() { c.rules = nil }, func(a attributes) {
			if in, text := parseRule(a); in == name {
				c.rules = append(c.rules, text)
			}
		})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("list the rules of chain %s: %w", name, err)
	}
	m.chains[name] = c
	return nil
}
