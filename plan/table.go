package plan

import "iter"

// Table is one part of a plan: keyed values, with the keys that changed since
// somebody last took them. The zero value is not usable; see NewTable.
type Table[K comparable, V any] struct {
	want  map[K]V
	dirty map[K]struct{}
	equal func(a, b V) bool
}

// NewTable returns an empty table whose values are compared by equal.
func NewTable[K comparable, V any](equal func(a, b V) bool) *Table[K, V] {
	return &Table[K, V]{want: map[K]V{}, dirty: map[K]struct{}{}, equal: equal}
}

// Set asks for v under k. It does nothing when that is what is asked already.
func (t *Table[K, V]) Set(k K, v V) {
	if old, ok := t.want[k]; ok && t.equal(old, v) {
		return
	}
	t.want[k] = v
	t.dirty[k] = struct{}{}
}

// Delete asks for nothing under k.
func (t *Table[K, V]) Delete(k K) {
	if _, ok := t.want[k]; !ok {
		return
	}
	delete(t.want, k)
	t.dirty[k] = struct{}{}
}

// Get returns what is asked for under k.
func (t *Table[K, V]) Get(k K) (V, bool) {
	v, ok := t.want[k]
	return v, ok
}

// Len is the number of entries asked for.
func (t *Table[K, V]) Len() int { return len(t.want) }

// All iterates over what is asked for, in no order.
func (t *Table[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k, v := range t.want {
			if !yield(k, v) {
				return
			}
		}
	}
}

// Dirty iterates over the keys that changed, or whose state in the kernel is in
// doubt, in no order.
func (t *Table[K, V]) Dirty() iter.Seq[K] {
	return func(yield func(K) bool) {
		for k := range t.dirty {
			if !yield(k) {
				return
			}
		}
	}
}

// IsDirty says whether k is dirty.
func (t *Table[K, V]) IsDirty(k K) bool {
	_, ok := t.dirty[k]
	return ok
}

// DirtyLen is the number of dirty keys.
func (t *Table[K, V]) DirtyLen() int { return len(t.dirty) }

// MarkDirty says that k has to be looked at again: a write failed, or the
// kernel's state was changed by somebody else.
func (t *Table[K, V]) MarkDirty(k K) { t.dirty[k] = struct{}{} }

// MarkClean says that the kernel has what is asked for under k.
func (t *Table[K, V]) MarkClean(k K) {
	delete(t.dirty, k)
	if len(t.dirty) == 0 {
		// A map keeps the room that it once needed, and walking it costs by
		// that: after a first load each change would pay for all.
		t.dirty = map[K]struct{}{}
	}
}
