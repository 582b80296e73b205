package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// Watch implements store.Store. It speaks the watch protocol itself, one stream
// a watch: the library's watcher would hide an outage and reconnect in silence,
// and our caller wants to know and to decide.
func (s *Store) Watch(ctx context.Context, kind *api.Kind, revision string) (<-chan store.Event, func() error) {
	return store.Stream(ctx, kind, func(ch chan<- store.Event) error { return s.watch(ctx, kind, revision, ch) })
}

func (s *Store) watch(ctx context.Context, kind *api.Kind, revision string, ch chan<- store.Event) error {
	from, err := parsePosition(revision)
	if err != nil {
		return err
	}
	w := watch{store: s, kind: kind, ch: ch}
	// The stream lives as long as the watch; only its opening is timed.
	w.ctx, w.cancel = context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer w.cancel()
	defer context.AfterFunc(s.ctx, w.cancel)()
	err = w.run(from)
	if errors.Is(err, store.ErrRestored) {
		s.history.gone(from.past) // the other watches need not find out
	}
	if ctx.Err() == nil && s.ctx.Err() != nil {
		err = errClosed
	}
	return classify(ctx, err, nil)
}

// watch is one stream.
type watch struct {
	store  *Store
	kind   *api.Kind
	ch     chan<- store.Event
	ctx    context.Context
	cancel context.CancelFunc
}

var errNoAnswer = fmt.Errorf("%w: no answer within %s", store.ErrUnavailable, callTimeout)

func (w *watch) run(from position) error {
	stream, err := w.open(from)
	if err != nil {
		return err
	}
	if err := w.send(from.event(store.Bookmark, nil)); err != nil {
		return err
	}
	at := from
	for {
		r, err := stream.Recv()
		switch {
		case err != nil:
			return err
		case r.CompactRevision != 0:
			return store.ErrCompacted
		case r.Canceled:
			return canceled(r)
		}
		at.term = r.Header.RaftTerm
		if len(r.Events) == 0 { // etcd's sign that all up to here was sent
			at.revision = max(at.revision, r.Header.Revision)
			if err := w.send(at.event(store.Bookmark, nil)); err != nil {
				return err
			}
		}
		for _, event := range r.Events {
			at.revision = event.Kv.ModRevision
			if event.Type == mvccpb.PUT {
				w.store.history.saw(event.Kv, at.past)
			}
			if err := w.event(event, at); err != nil {
				return err
			}
		}
	}
}

// open asks for the events after a position and checks that the server's
// history has it.
func (w *watch) open(from position) (pb.Watch_WatchClient, error) {
	timer := time.AfterFunc(callTimeout, w.cancel)
	stream, header, err := w.request(from.revision + 1)
	if !timer.Stop() {
		return nil, errNoAnswer
	}
	if err != nil {
		return nil, err
	}
	if header.ClusterId != from.cluster {
		return nil, store.ErrRestored
	}
	if header.RaftTerm < from.term || header.Revision < from.revision {
		// Either another history, or a member that lags behind, which a
		// linearizable read tells apart.
		if err := w.store.confirm(w.ctx, from); err != nil {
			return nil, err
		}
	}
	return stream, w.store.confirmHistory(w.ctx, from.past)
}

func (w *watch) request(revision int64) (pb.Watch_WatchClient, *pb.ResponseHeader, error) {
	client, err := w.store.client(w.ctx)
	if err != nil {
		return nil, nil, err
	}
	stream, err := pb.NewWatchClient(client.ActiveConnection()).Watch(w.ctx)
	if err != nil {
		return nil, nil, err
	}
	prefix := kindPath(w.kind)
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key:            []byte(prefix),
		RangeEnd:       []byte(clientv3.GetPrefixRangeEnd(prefix)),
		StartRevision:  revision,
		ProgressNotify: true,
	}}})
	// An error of Send only says that the stream ended; Recv says why.
	created, recvErr := stream.Recv()
	switch {
	case recvErr != nil:
		return nil, nil, recvErr
	case err != nil:
		return nil, nil, err
	case created.CompactRevision != 0:
		return nil, nil, store.ErrCompacted
	case created.Canceled:
		return nil, nil, canceled(created)
	case !created.Created:
		return nil, nil, errors.New("etcd sent events before it confirmed the watch")
	}
	return stream, created.Header, nil
}

func canceled(r *pb.WatchResponse) error {
	if r.CancelReason == "" {
		return fmt.Errorf("%w: etcd ended the watch", store.ErrUnavailable)
	}
	return fmt.Errorf("etcd ended the watch: %s", r.CancelReason)
}

// confirm returns ErrRestored if the cluster has not reached the position.
func (s *Store) confirm(ctx context.Context, from position) error {
	r, err := call(ctx, s, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
		return c.Get(ctx, root, clientv3.WithCountOnly())
	})
	if err != nil {
		return err
	}
	if r.Header.RaftTerm < from.term || r.Header.Revision < from.revision {
		return store.ErrRestored
	}
	return nil
}

// event passes one change on, or reports what can't be read.
func (w *watch) event(event *clientv3.Event, at position) error {
	kv := event.Kv
	if event.Type == mvccpb.DELETE {
		w.store.rubbish.Forget(string(kv.Key))
		key, err := parsePath(w.kind, string(kv.Key))
		if err != nil {
			return nil // it was no object
		}
		obj := w.kind.New()
		obj.SetNamespace(key.Namespace)
		obj.SetName(key.Name)
		obj.SetResourceVersion(strconv.FormatInt(kv.ModRevision, 10))
		return w.send(at.event(store.Deleted, obj))
	}
	obj, _, err := decode(w.kind, kv)
	if err != nil {
		w.store.unreadable(w.kind, kv, err)
		return nil
	}
	w.store.rubbish.Forget(string(kv.Key))
	return w.send(at.event(store.Put, obj))
}

func (w *watch) send(event store.Event) error {
	select {
	case w.ch <- event:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}
