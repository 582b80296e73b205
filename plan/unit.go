package plan

import (
	"net/netip"
	"slices"
)

// deviceUnits are the tables of devices and what is on them, for all who plan in
// units: the names of their units keep them apart. Pods come first: a route to a
// pod of this node wins over what somebody says of its address elsewhere.
type deviceUnits struct {
	links      *units[string, Link]
	addresses  *units[AddressKey, struct{}]
	neighbours *units[NeighbourKey, MAC]
	fdb        *units[FDBKey, netip.Addr]
	routes     *units[netip.Prefix, Route]
	sysctls    *units[string, string]
}

func newDeviceUnits(p *Plan) deviceUnits {
	return deviceUnits{
		links:      newUnits(p.Links),
		addresses:  newUnits(p.Addresses),
		neighbours: newUnits(p.Neighbours),
		fdb:        newUnits(p.FDB),
		routes:     newUnits(p.Routes),
		sysctls:    newUnits(p.Sysctls),
	}
}

// podUnit and nodeUnit name the units of deviceUnits.
func podUnit(hostInterface string) string { return "0 pod " + hostInterface }

func nodeUnit(name string) string { return "1 node " + name }

// selfUnit is what depends on this node alone.
const selfUnit = "2 self"

// units remembers, for each planning unit (a peer, a pool, a pod), what it asks
// for in a table, so that planning the unit again also takes back what it no
// longer asks for. Where several ask for one key, the one whose name comes first
// has it, in whichever order they are planned; when it no longer asks, the next
// has it.
type units[K comparable, V any] struct {
	table demand[K, V]
	asked map[string]map[K]V
	by    map[K][]string // units that ask for the key, sorted
}

// demand is a table of whatever kind.
type demand[K comparable, V any] interface {
	Set(K, V)
	Delete(K)
}

func newUnits[K comparable, V any](t demand[K, V]) *units[K, V] {
	return &units[K, V]{table: t, asked: map[string]map[K]V{}, by: map[K][]string{}}
}

// replace makes the unit ask for exactly the given entries.
func (u *units[K, V]) replace(unit string, want map[K]V) {
	before := u.asked[unit]
	if len(want) > 0 {
		u.asked[unit] = want
	} else {
		delete(u.asked, unit)
	}
	for k := range before {
		if _, still := want[k]; !still {
			i, _ := slices.BinarySearch(u.by[k], unit)
			u.by[k] = slices.Delete(u.by[k], i, i+1)
			u.settle(k)
		}
	}
	for k := range want {
		if _, already := before[k]; !already {
			i, _ := slices.BinarySearch(u.by[k], unit)
			u.by[k] = slices.Insert(u.by[k], i, unit)
		}
		u.settle(k)
	}
}

// settle gives the key to the first unit that asks for it.
func (u *units[K, V]) settle(k K) {
	if len(u.by[k]) == 0 {
		delete(u.by, k)
		u.table.Delete(k)
		return
	}
	u.table.Set(k, u.asked[u.by[k][0]][k])
}

// addTo and removeFrom keep sets of names by key; a key without names is gone.
func addTo[K comparable](sets map[K]map[string]struct{}, k K, name string) {
	if sets[k] == nil {
		sets[k] = map[string]struct{}{}
	}
	sets[k][name] = struct{}{}
}

func removeFrom[K comparable](sets map[K]map[string]struct{}, k K, name string) {
	delete(sets[k], name)
	if len(sets[k]) == 0 {
		delete(sets, k)
	}
}
