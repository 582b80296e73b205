package etcd

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twill-net/twill/store"
)

// history is the past of the cluster as far as this process has seen it. Neither
// a cluster's id nor its raft term tell for sure that it was put back from a
// backup (a copy of the volume has both), and revisions only as long as it has
// not counted on past what is known. The last change that was seen tells: another
// past has something else at its revision.
type history struct {
	mu     sync.Mutex
	number uint64 // of the pasts that turned out to be gone
	last   change
	listed change // the last that a list held; of which past is not known yet
}

// change is a key as one revision left it.
type change struct {
	key      string
	revision int64
	created  int64
	value    uint64 // a hash
}

var hashSeed = maphash.MakeSeed()

func changeOf(kv *mvccpb.KeyValue) change {
	return change{string(kv.Key), kv.ModRevision, kv.CreateRevision, maphash.Bytes(hashSeed, kv.Value)}
}

// saw notes an event of the given past.
func (h *history) saw(kv *mvccpb.KeyValue, number uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if number == h.number && kv.ModRevision > h.last.revision {
		h.last = changeOf(kv)
	}
}

// held notes what a list held.
func (h *history) held(kv *mvccpb.KeyValue) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if kv.ModRevision > h.listed.revision {
		h.listed = changeOf(kv)
	}
}

func (h *history) now() (last change, number uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last, h.number
}

// stands notes that the past is still that of the cluster, and so is what lists
// held.
func (h *history) stands(number uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if number == h.number && h.listed.revision > h.last.revision {
		h.last = h.listed
	}
}

// gone notes that a past is no longer that of the cluster.
func (h *history) gone(number uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if number == h.number {
		h.number++
		h.last, h.listed = change{}, change{}
	}
}

// confirmHistory returns ErrRestored if the cluster has not the past with that
// number. Where that was compacted nothing speaks against it.
func (s *Store) confirmHistory(ctx context.Context, number uint64) error {
	last, now := s.history.now()
	if number != now {
		return store.ErrRestored // another watch has found out
	}
	if last.key != "" {
		r, err := call(ctx, s, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
			r, err := c.Get(ctx, last.key, clientv3.WithRev(last.revision))
			if errors.Is(err, rpctypes.ErrFutureRev) {
				return &clientv3.GetResponse{}, nil
			}
			return r, err
		})
		switch {
		case errors.Is(err, store.ErrCompacted):
		case err != nil:
			return err
		case len(r.Kvs) != 1 || changeOf(r.Kvs[0]) != last:
			return store.ErrRestored
		}
	}
	s.history.stands(number)
	return nil
}
