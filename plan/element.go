package plan

import (
	"encoding/binary"
	"iter"
)

// ElementKey names one element of a set or map. Key is the key as the kernel
// has it: fields in network byte order, each padded to 4 bytes (see KeyOf).
type ElementKey struct {
	Set string
	Key string
}

// Element is the rest of a set's element. All strings but Comment and Verdict
// are in the kernel's form.
type Element struct {
	// End is the last key of an interval (inclusive), same form as the key;
	// empty for sets without intervals.
	End string
	// Value is what a map gives for the key; empty for sets and verdict maps.
	Value string
	// Verdict is what a verdict map gives for the key: "accept", "drop",
	// "return", "jump CHAIN", "goto CHAIN".
	Verdict string
	// Comment is shown by nft list.
	Comment string
}

// Packed is an Element in one string, as it is kept: there are hundreds of
// thousands, and most are members of sets of whom nothing else is to be said. Two
// are equal if their elements are.
type Packed string

// Pack returns the packed form; "" for an Element that says nothing.
func Pack(e Element) Packed {
	if e == (Element{}) {
		return ""
	}
	b := make([]byte, 0, 3*binary.MaxVarintLen16+len(e.End)+len(e.Value)+len(e.Verdict)+len(e.Comment))
	for _, s := range []string{e.End, e.Value, e.Verdict} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	return Packed(append(b, e.Comment...))
}

// Element returns what was packed. Its strings share the packed one's memory.
func (p Packed) Element() (e Element) {
	if p == "" {
		return e
	}
	rest := string(p)
	for _, s := range []*string{&e.End, &e.Value, &e.Verdict} {
		*s, rest = cutField(rest)
	}
	e.Comment = rest
	return e
}

func cutField(s string) (field, rest string) {
	n, shift := 0, 0
	for s[0] >= 0x80 {
		n |= int(s[0]&0x7f) << shift
		s, shift = s[1:], shift+7
	}
	n |= int(s[0]) << shift
	return s[1 : 1+n], s[1+n:]
}

// Elements is the part of a plan that holds the elements of all sets. It is used
// as a Table is.
type Elements struct {
	want  map[string]map[string]Packed // by set, by key
	dirty map[string]map[string]struct{}
	n     int
}

func newElements() *Elements {
	return &Elements{want: map[string]map[string]Packed{}, dirty: map[string]map[string]struct{}{}}
}

// Set asks for e under k. It does nothing when that is what is asked already.
func (t *Elements) Set(k ElementKey, e Element) {
	set := t.want[k.Set]
	old, ok := set[k.Key]
	if ok && old.Element() == e {
		return
	}
	if set == nil {
		set = map[string]Packed{}
		t.want[k.Set] = set
	}
	if !ok {
		t.n++
	}
	set[k.Key] = Pack(e)
	t.MarkDirty(k)
}

// Delete asks for nothing under k.
func (t *Elements) Delete(k ElementKey) {
	set := t.want[k.Set]
	if _, ok := set[k.Key]; !ok {
		return
	}
	t.n--
	if delete(set, k.Key); len(set) == 0 {
		delete(t.want, k.Set)
	}
	t.MarkDirty(k)
}

// Get returns what is asked for under k.
func (t *Elements) Get(k ElementKey) (Element, bool) {
	p, ok := t.Packed(k)
	return p.Element(), ok
}

// Packed returns what is asked for under k as it is kept.
func (t *Elements) Packed(k ElementKey) (Packed, bool) {
	p, ok := t.want[k.Set][k.Key]
	return p, ok
}

// Len is the number of elements asked for.
func (t *Elements) Len() int { return t.n }

// LenOf is the number of a set's elements asked for.
func (t *Elements) LenOf(set string) int { return len(t.want[set]) }

// All iterates over what is asked for, set by set and otherwise in no order.
func (t *Elements) All() iter.Seq2[ElementKey, Element] {
	return func(yield func(ElementKey, Element) bool) {
		for name, set := range t.want {
			for key, p := range set {
				if !yield(ElementKey{name, key}, p.Element()) {
					return
				}
			}
		}
	}
}

// Dirty iterates over the keys that changed, or whose state in the kernel is in
// doubt, set by set and otherwise in no order.
func (t *Elements) Dirty() iter.Seq[ElementKey] {
	return func(yield func(ElementKey) bool) {
		for name, set := range t.dirty {
			for key := range set {
				if !yield(ElementKey{name, key}) {
					return
				}
			}
		}
	}
}

// IsDirty says whether k is dirty.
func (t *Elements) IsDirty(k ElementKey) bool {
	_, ok := t.dirty[k.Set][k.Key]
	return ok
}

// DirtyLen is the number of dirty keys.
func (t *Elements) DirtyLen() (n int) {
	for _, set := range t.dirty {
		n += len(set)
	}
	return n
}

// MarkDirty says that k has to be looked at again: a write failed, or the
// kernel's state was changed by somebody else.
func (t *Elements) MarkDirty(k ElementKey) {
	set := t.dirty[k.Set]
	if set == nil {
		set = map[string]struct{}{}
		t.dirty[k.Set] = set
	}
	set[k.Key] = struct{}{}
}

// MarkClean says that the kernel has what is asked for under k.
func (t *Elements) MarkClean(k ElementKey) {
	set := t.dirty[k.Set]
	if delete(set, k.Key); len(set) == 0 {
		delete(t.dirty, k.Set)
	}
	if len(t.dirty) == 0 {
		t.dirty = map[string]map[string]struct{}{} // for the reason in Table.MarkClean
	}
}
