package route

// belief is what the kernel is thought to have of one part of a plan.
type belief[K, V comparable] struct {
	have    map[K]V
	on      map[string]map[K]struct{} // keys by the link that they need, "" for none
	changed map[K]struct{}            // changed by others; not yet marked dirty in the plan
	// suspect are keys that are dirty for no other reason than that the kernel may
	// differ: to write one mends what another program changed.
	suspect map[K]struct{}
	link    func(K, V) string
}

func newBelief[K, V comparable](link func(K, V) string) *belief[K, V] {
	b := &belief[K, V]{link: link, suspect: map[K]struct{}{}}
	b.reset()
	return b
}

func (b *belief[K, V]) reset() {
	b.have, b.on, b.changed = map[K]V{}, map[string]map[K]struct{}{}, map[K]struct{}{}
}

// set notes that the kernel has v under k, by our own hand or by reading.
func (b *belief[K, V]) set(k K, v V) {
	b.unset(k)
	b.have[k] = v
	on := b.on[b.link(k, v)]
	if on == nil {
		on = map[K]struct{}{}
		b.on[b.link(k, v)] = on
	}
	on[k] = struct{}{}
}

// unset notes that the kernel has nothing under k, by our own hand.
func (b *belief[K, V]) unset(k K) {
	delete(b.changed, k)
	v, ok := b.have[k]
	if !ok {
		return
	}
	delete(b.have, k)
	link := b.link(k, v)
	delete(b.on[link], k)
	if len(b.on[link]) == 0 {
		delete(b.on, link)
	}
}

// learn takes a notification: the kernel has v under k, or nothing. Unless this
// was known, which is so after each write of ours, somebody else changed k.
func (b *belief[K, V]) learn(k K, v V, exists bool) {
	old, ok := b.have[k]
	if ok == exists && (!exists || old == v) {
		return
	}
	if exists {
		b.set(k, v)
	} else {
		b.unset(k)
	}
	b.changed[k] = struct{}{}
}

// lose notes that everything on a link is gone: the kernel removes some things
// together with their device and does not tell.
func (b *belief[K, V]) lose(link string) {
	for k := range b.on[link] {
		b.unset(k)
		b.changed[k] = struct{}{}
	}
}
