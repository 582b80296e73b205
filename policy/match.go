package policy

import (
	"cmp"
	"slices"
)

// A matcher keeps, for identities and selections that come and go, which
// selection selects which identity. A change costs what it touches: a selection
// is looked for under one label that it requires, an identity is compared only
// with selections that are found under one of its labels.
//
// U is who uses a selection: a policy whose pods it selects, or a set whose
// members it gives.
type matcher[U comparable] struct {
	namespaces map[string]*namespace[U]
	scopes     map[string]*scope[U]   // by the text of the namespace selector
	wide       map[*scope[U]]struct{} // the scopes that are not just one namespace's name
	selectors  map[selectionID]*selector[U]
	identities map[identityID]*identity[U]
	byLabel    map[string]*labelIndex[U] // by key
	created    uint64                    // number of identities ever, for their order
}

// labelIndex is the labels of one key, by value.
type labelIndex[U comparable] struct {
	key    string
	values map[string]*usedLabel[U]
}

// usedLabel is a label and the identities that have it. It is stored once,
// however many they are.
type usedLabel[U comparable] struct {
	label
	identities []*identity[U]
}

// identity is a namespace with a set of labels. A selection selects all
// endpoints of an identity or none.
type identity[U comparable] struct {
	id        identityID
	number    uint64
	namespace *namespace[U]
	labels    []*label // of usedLabels
	endpoints []*endpoint
	selectors []*selector[U] // that select it
	visited   uint64         // by Compiler.members
}

type namespace[U comparable] struct {
	name       string
	known      bool // somebody told us its labels
	labels     []*label
	identities []*identity[U] // by number
	scopes     []*scope[U]    // that select it
}

// scope is a namespace selector in use. It is evaluated once per namespace, not
// once per endpoint.
type scope[U comparable] struct {
	selector   *Selector
	namespaces []*namespace[U]
	// The selectors with this scope, by a label that they require; the others
	// are in unanchored.
	anchored   map[anchor][]*selector[U]
	unanchored []*selector[U]
}

// selector is a selection in use.
type selector[U comparable] struct {
	*selection
	scope      *scope[U]
	identities []*identity[U] // that it selects, by number
	users      []U
}

func newMatcher[U comparable]() *matcher[U] {
	return &matcher[U]{
		namespaces: map[string]*namespace[U]{},
		scopes:     map[string]*scope[U]{},
		wide:       map[*scope[U]]struct{}{},
		selectors:  map[selectionID]*selector[U]{},
		identities: map[identityID]*identity[U]{},
		byLabel:    map[string]*labelIndex[U]{},
	}
}

// namespace returns the namespace, made with no labels but its name's if we
// never heard of it.
func (m *matcher[U]) namespace(name string) *namespace[U] {
	ns := m.namespaces[name]
	if ns == nil {
		ns = &namespace[U]{name: name, labels: namespaceLabels(name, nil)}
		m.namespaces[name] = ns
		ns.scopes = m.scopesOf(ns)
		for _, sc := range ns.scopes {
			sc.namespaces = append(sc.namespaces, ns)
		}
	}
	return ns
}

func (m *matcher[U]) scopesOf(ns *namespace[U]) []*scope[U] {
	var out []*scope[U]
	if sc := m.scopes[selectName(ns.name).String()]; sc != nil {
		out = append(out, sc)
	}
	for sc := range m.wide {
		if sc.selector.selects(ns.labels) {
			out = append(out, sc)
		}
	}
	return out
}

// relabel changes a namespace's labels and says whether other selections may
// select its endpoints now; rematch then makes it so.
func (m *matcher[U]) relabel(name string, labels map[string]string, known bool) bool {
	ns := m.namespace(name)
	ns.known, ns.labels = known, namespaceLabels(name, labels)
	before := ns.scopes
	ns.scopes = m.scopesOf(ns)
	changed := false
	for _, sc := range before {
		if !slices.Contains(ns.scopes, sc) {
			sc.namespaces = remove(sc.namespaces, ns)
			changed = true
		}
	}
	for _, sc := range ns.scopes {
		if !slices.Contains(before, sc) {
			sc.namespaces = append(sc.namespaces, ns)
			changed = true
		}
	}
	m.dropUnused(ns)
	return changed && len(ns.identities) > 0
}

func (m *matcher[U]) rematch(name string) {
	for _, id := range m.namespace(name).identities {
		m.unmatch(id)
		m.match(id)
	}
}

func (m *matcher[U]) dropUnused(ns *namespace[U]) {
	if ns.known || len(ns.identities) > 0 {
		return
	}
	for _, sc := range ns.scopes {
		sc.namespaces = remove(sc.namespaces, ns)
	}
	delete(m.namespaces, ns.name)
}

// join adds an endpoint to the identity of its namespace and labels.
func (m *matcher[U]) join(e *endpoint, labels labelSet) *identity[U] {
	id := m.identities[labels.id]
	if id == nil {
		m.created++
		id = &identity[U]{id: labels.id, number: m.created, namespace: m.namespace(e.key.Namespace), labels: make([]*label, len(labels.labels))}
		m.identities[labels.id] = id
		id.namespace.identities = append(id.namespace.identities, id)
		for i, l := range labels.labels {
			id.labels[i] = m.index(l, id)
		}
		m.match(id)
	}
	e.key.Namespace = id.namespace.name
	id.endpoints = append(id.endpoints, e)
	return id
}

func (m *matcher[U]) index(l label, id *identity[U]) *label {
	x := m.byLabel[l.key]
	if x == nil {
		x = &labelIndex[U]{l.key, map[string]*usedLabel[U]{}}
		m.byLabel[l.key] = x
	}
	used := x.values[l.value]
	if used == nil {
		used = &usedLabel[U]{label: label{x.key, l.value}}
		x.values[l.value] = used
	}
	used.identities = append(used.identities, id)
	return &used.label
}

// leave undoes join.
func (m *matcher[U]) leave(id *identity[U], e *endpoint) {
	id.endpoints = remove(id.endpoints, e)
	if len(id.endpoints) > 0 {
		return
	}
	m.unmatch(id)
	delete(m.identities, id.id)
	for _, l := range id.labels {
		x := m.byLabel[l.key]
		used := x.values[l.value]
		if used.identities = withoutIdentity(used.identities, id); len(used.identities) > 0 {
			continue
		}
		if delete(x.values, l.value); len(x.values) == 0 {
			delete(m.byLabel, l.key)
		}
	}
	id.namespace.identities = withoutIdentity(id.namespace.identities, id)
	m.dropUnused(id.namespace)
}

// match finds the selectors that select an identity.
func (m *matcher[U]) match(id *identity[U]) {
	consider := func(candidates []*selector[U]) {
		for _, s := range candidates {
			if s.pods.selects(id.labels) {
				id.selectors = append(id.selectors, s)
				s.identities = withIdentity(s.identities, id)
			}
		}
	}
	for _, sc := range id.namespace.scopes {
		consider(sc.unanchored)
		if len(sc.anchored) == 0 {
			continue
		}
		for _, l := range id.labels {
			consider(sc.anchored[anchor{label: *l}])
			consider(sc.anchored[anchor{label: label{key: l.key}, anyValue: true}])
		}
	}
}

func (m *matcher[U]) unmatch(id *identity[U]) {
	for _, s := range id.selectors {
		s.identities = withoutIdentity(s.identities, id)
	}
	id.selectors = nil
}

// use finds what a selection selects, and keeps it up to date until release.
func (m *matcher[U]) use(sel *selection, user U) *selector[U] {
	s := m.selectors[sel.id]
	if s == nil {
		s = &selector[U]{selection: sel, scope: m.scope(sel.namespaces)}
		m.selectors[sel.id] = s
		if anchors := s.pods.anchors(); anchors == nil {
			s.scope.unanchored = append(s.scope.unanchored, s)
		} else {
			for _, a := range anchors {
				s.scope.anchored[a] = append(s.scope.anchored[a], s)
			}
		}
		for _, candidates := range m.candidates(s) {
			for _, id := range candidates {
				if s.pods.selects(id.labels) && slices.Contains(id.namespace.scopes, s.scope) {
					id.selectors = append(id.selectors, s)
					s.identities = append(s.identities, id)
				}
			}
		}
		slices.SortFunc(s.identities, byNumber)
	}
	s.users = append(s.users, user)
	return s
}

// candidates are lists of identities, one of which holds each that the selector
// selects: those with a label that it needs or those in its namespaces,
// whichever are fewer.
func (m *matcher[U]) candidates(s *selector[U]) [][]*identity[U] {
	var out [][]*identity[U]
	anchors := s.pods.anchors()
	for _, a := range anchors {
		x := m.byLabel[a.key]
		switch {
		case x == nil:
		case a.anyValue:
			for _, used := range x.values {
				out = append(out, used.identities)
			}
		case x.values[a.value] != nil:
			out = append(out, x.values[a.value].identities)
		}
	}
	n := 0
	for _, list := range out {
		n += len(list)
	}
	for _, ns := range s.scope.namespaces {
		if n -= len(ns.identities); n <= 0 && anchors != nil {
			return out
		}
	}
	out = nil
	for _, ns := range s.scope.namespaces {
		out = append(out, ns.identities)
	}
	return out
}

// release undoes use.
func (m *matcher[U]) release(s *selector[U], user U) {
	s.users = remove(s.users, user)
	if len(s.users) > 0 {
		return
	}
	delete(m.selectors, s.id)
	for _, id := range s.identities {
		id.selectors = remove(id.selectors, s)
	}
	sc := s.scope
	if anchors := s.pods.anchors(); anchors == nil {
		sc.unanchored = remove(sc.unanchored, s)
	} else {
		for _, a := range anchors {
			if sc.anchored[a] = remove(sc.anchored[a], s); len(sc.anchored[a]) == 0 {
				delete(sc.anchored, a)
			}
		}
	}
	if len(sc.anchored) == 0 && len(sc.unanchored) == 0 {
		delete(m.scopes, sc.selector.String())
		delete(m.wide, sc)
		for _, ns := range sc.namespaces {
			ns.scopes = remove(ns.scopes, sc)
		}
	}
}

func (m *matcher[U]) scope(sel *Selector) *scope[U] {
	sc := m.scopes[sel.String()]
	if sc != nil {
		return sc
	}
	sc = &scope[U]{selector: sel, anchored: map[anchor][]*selector[U]{}}
	m.scopes[sel.String()] = sc
	// Most scopes are one namespace's name: those are not searched for.
	if name, ok := sel.namespaceName(); ok {
		if ns := m.namespaces[name]; ns != nil {
			sc.namespaces = append(sc.namespaces, ns)
			ns.scopes = append(ns.scopes, sc)
		}
		return sc
	}
	m.wide[sc] = struct{}{}
	for _, ns := range m.namespaces {
		if sc.selector.selects(ns.labels) {
			sc.namespaces = append(sc.namespaces, ns)
			ns.scopes = append(ns.scopes, sc)
		}
	}
	return sc
}

// Lists of identities are sorted by number, so that leaving a list of 50,000 is
// a binary search.

func byNumber[U comparable](a, b *identity[U]) int { return cmp.Compare(a.number, b.number) }

func withIdentity[U comparable](list []*identity[U], id *identity[U]) []*identity[U] {
	if n := len(list); n == 0 || list[n-1].number < id.number {
		return append(list, id)
	}
	i, _ := slices.BinarySearchFunc(list, id, byNumber[U])
	return slices.Insert(list, i, id)
}

func withoutIdentity[U comparable](list []*identity[U], id *identity[U]) []*identity[U] {
	if i, found := slices.BinarySearchFunc(list, id, byNumber[U]); found {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// remove takes v out of a list whose order does not matter.
func remove[T comparable](list []T, v T) []T {
	i := slices.Index(list, v)
	if i < 0 {
		return list
	}
	last := len(list) - 1
	list[i] = list[last]
	var zero T
	list[last] = zero // for the garbage collector
	return list[:last]
}
