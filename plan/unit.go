package plan

// units remembers, for each planning unit (a peer, a pool, a pod), which keys of
// a table it asked for, so that planning the unit again also takes back what it
// no longer asks for. A key that moves from one unit to another stays, in
// whichever order the two are planned.
type units[U, K comparable, V any] struct {
	table asked[K, V]
	keys  map[U][]K
	owner map[K]U
}

// asked is a table of whatever kind.
type asked[K comparable, V any] interface {
	Set(K, V)
	Delete(K)
}

func newUnits[U, K comparable, V any](t asked[K, V]) *units[U, K, V] {
	return &units[U, K, V]{table: t, keys: map[U][]K{}, owner: map[K]U{}}
}

// replace makes the unit ask for exactly the given entries.
func (u *units[U, K, V]) replace(unit U, want map[K]V) {
	for _, k := range u.keys[unit] {
		if _, ok := want[k]; !ok && u.owner[k] == unit {
			u.table.Delete(k)
			delete(u.owner, k)
		}
	}
	if len(want) == 0 {
		delete(u.keys, unit)
		return
	}
	keys := make([]K, 0, len(want))
	for k, v := range want {
		u.table.Set(k, v)
		u.owner[k] = unit
		keys = append(keys, k)
	}
	u.keys[unit] = keys
}
