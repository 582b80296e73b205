package controller

import (
	"math/rand/v2"
	"sync"
	"time"
)

// queue hands out what is to be reconciled: each item once however often it was
// added, and never to two workers at a time. Items that failed come back after
// a delay that doubles.
type queue[K comparable] struct {
	mu      sync.Mutex
	ready   *sync.Cond
	waiting []K            // in the order of their coming
	queued  map[K]struct{} // in waiting, or added again while active
	active  map[K]struct{}
	delay   map[K]time.Duration // before the next retry
	closed  bool
}

func newQueue[K comparable]() *queue[K] {
	q := &queue[K]{queued: map[K]struct{}{}, active: map[K]struct{}{}, delay: map[K]time.Duration{}}
	q.ready = sync.NewCond(&q.mu)
	return q
}

func (q *queue[K]) add(k K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.queued[k]; ok || q.closed {
		return
	}
	q.queued[k] = struct{}{}
	if _, busy := q.active[k]; !busy {
		q.waiting = append(q.waiting, k)
		q.ready.Signal()
	}
}

// take waits for an item; false says that the queue is closed.
func (q *queue[K]) take() (K, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) == 0 && !q.closed {
		q.ready.Wait()
	}
	if q.closed {
		var none K
		return none, false
	}
	k := q.waiting[0]
	q.waiting = q.waiting[1:]
	delete(q.queued, k)
	q.active[k] = struct{}{}
	return k, true
}

// done gives an item back, as good or to be tried again.
func (q *queue[K]) done(k K, good bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.active, k)
	if _, again := q.queued[k]; again {
		q.waiting = append(q.waiting, k)
		q.ready.Signal()
	}
	if good {
		delete(q.delay, k)
		return
	}
	d := max(q.delay[k], firstRetry)
	q.delay[k] = min(2*d, lastRetry)
	time.AfterFunc(d/2+rand.N(d/2), func() { q.add(k) })
}

func (q *queue[K]) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.ready.Broadcast()
}
