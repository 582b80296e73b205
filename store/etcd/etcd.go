// Package etcd keeps objects in an etcd cluster, 3.4 or later, as JSON under
// /twill/v1/<group>/<plural>/<namespace>/<name>. The object's resourceVersion
// is the key's modification revision; a write is one transaction that compares
// it.
//
// It never caches objects, never compacts the history (that is the business of
// etcd's operator) and never writes outside /twill/.
package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

const (
	callTimeout = 5 * time.Second // of one request whose context has no deadline
	pageSize    = 1000            // objects in one request of a list

	maxReconnectDelay = time.Second // between attempts to reach etcd, less or more a fifth
)

// Config says where etcd is and who we are.
type Config struct {
	// Endpoints are host:port, http://, https://, unix:// or unixs://, all with
	// TLS or all without.
	Endpoints []string
	// CAFile, or CertFile with KeyFile, or all three, mean TLS. Without CAFile
	// the system's authorities count. Files are PEM; certificate and key are
	// read again for each connection.
	CAFile, CertFile, KeyFile string
	// Username goes with PasswordFile, whose first line is the password.
	Username, PasswordFile string
	// Logger gets what the store can't return as an error; nil drops it.
	Logger *slog.Logger
}

// Store implements store.Store, store.Elector, store.Inspector and store.Remote.
type Store struct {
	store.Peers // of established connections

	log    *slog.Logger
	config clientv3.Config
	ctx    context.Context // ends with Close
	close  context.CancelFunc

	history history
	rubbish store.Rubbish

	mu      sync.Mutex
	dialing *dialing

	abandonedMu sync.Mutex
	abandoned   []clientv3.LeaseID // of lost elections, not yet revoked
}

// dialing is one attempt to make a client. With a password that asks the
// server for a token, which takes as long as the server does.
type dialing struct {
	done   chan struct{}
	client *clientv3.Client
	err    error
}

// Open checks the configuration and returns a store. It does not wait for etcd:
// a node whose etcd is away starts all the same. Connections are made by the
// first call; ctx bounds nothing but Open itself.
func Open(ctx context.Context, c Config) (store.Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	config, err := clientConfig(c)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	s := &Store{log: c.Logger, config: config}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.close = context.WithCancel(context.Background())
	s.config.Context = s.ctx
	s.config.DialOptions = append(s.config.DialOptions, grpc.WithStatsHandler(connections{&s.Peers}))
	return s, nil
}

// client returns the shared client, made on first use.
func (s *Store) client(ctx context.Context) (*clientv3.Client, error) {
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return nil, errClosed
	}
	d := s.dialing
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		s.dialing = d
		go s.dial(d)
	}
	s.mu.Unlock()
	select {
	case <-d.done:
		return d.client, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Store) dial(d *dialing) {
	client, err := clientv3.New(s.config)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.dialing = nil
	case s.ctx.Err() != nil:
		client.Close()
		client, err = nil, errClosed
	}
	d.client, d.err = client, err
	close(d.done)
}

// AwaitReconnect implements store.Reconnector.
func (s *Store) AwaitReconnect(ctx context.Context) {
	client, err := s.client(ctx)
	if err != nil {
		<-ctx.Done() // there is nobody yet to tell
		return
	}
	conn := client.ActiveConnection()
	for state := conn.GetState(); conn.WaitForStateChange(ctx, state); {
		if state = conn.GetState(); state == connectivity.Ready {
			return
		}
	}
	<-ctx.Done() // the store was closed
}

// call runs one request against etcd, within bounded time, and classifies its
// error.
func call[R any](ctx context.Context, s *Store, request func(context.Context, *clientv3.Client) (R, error)) (R, error) {
	var last error
	callCtx := context.WithValue(ctx, lastErrorKey{}, &last)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		callCtx, cancel = context.WithTimeout(callCtx, callTimeout)
		defer cancel()
	}
	client, err := s.client(callCtx)
	var r R
	if err == nil {
		r, err = request(callCtx, client)
	}
	return r, classify(ctx, err, last)
}

// Get implements store.Store; the read is linearizable.
func (s *Store) Get(ctx context.Context, kind *api.Kind, key api.Key) (api.Object, error) {
	if err := store.CheckKey(kind, key); err != nil {
		return nil, err
	}
	obj, err := s.get(ctx, kind, key)
	if err != nil {
		return nil, fmt.Errorf("get %s %s: %w", kind.Name, key, err)
	}
	return obj, nil
}

func (s *Store) get(ctx context.Context, kind *api.Kind, key api.Key) (api.Object, error) {
	r, err := call(ctx, s, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
		return c.Get(ctx, keyPath(kind, key))
	})
	if err != nil {
		return nil, err
	}
	if len(r.Kvs) == 0 {
		return nil, store.ErrNotFound
	}
	kv := r.Kvs[0]
	obj, err := store.Decode(kind, key, kv.Value, strconv.FormatInt(kv.ModRevision, 10))
	if err != nil {
		return nil, fmt.Errorf("the value at %s is unreadable: %w; delete it or write it anew", kv.Key, err)
	}
	return obj, nil
}

// List implements store.Store; all pages are of one revision.
func (s *Store) List(ctx context.Context, kind *api.Kind, namespace string) (store.List, error) {
	if err := store.CheckNamespace(kind, namespace); err != nil {
		return store.List{}, err
	}
	return store.Collect(func(take func([]api.Object)) (store.List, error) { return s.pages(ctx, kind, namespace, take) })
}

// Pages implements store.Pager.
func (s *Store) Pages(ctx context.Context, kind *api.Kind, take func([]api.Object)) (store.List, error) {
	return s.pages(ctx, kind, "", take)
}

// page is an answer, or why there is none.
type page struct {
	*clientv3.GetResponse
	err error
}

// pages asks for each page while the one before it is decoded and taken.
func (s *Store) pages(ctx context.Context, kind *api.Kind, namespace string, take func([]api.Object)) (store.List, error) {
	prefix := kindPath(kind)
	if namespace != "" {
		prefix += namespace + "/"
	}
	end := clientv3.GetPrefixRangeEnd(prefix)
	coming := make(chan page, 1)
	get := func(from string, revision int64) {
		r, err := call(ctx, s, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
			return c.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
		})
		coming <- page{r, err}
	}
	_, past := s.history.now()
	go get(prefix, 0)
	var list store.List
	var revision int64 // of the first page
	bad := map[string]bool{}
	for {
		p := <-coming
		if p.err != nil {
			return store.List{}, fmt.Errorf("list %s: %w", kind.Plural, p.err)
		}
		if revision == 0 {
			revision = p.Header.Revision
			list.Revision, list.Reached = positionOf(p.Header, revision, past).String(), uint64(revision)
		}
		more := p.More && len(p.Kvs) > 0
		if more {
			go get(string(p.Kvs[len(p.Kvs)-1].Key)+"\x00", revision)
		}
		take(s.decodePage(kind, p.Kvs, &list, bad))
		if !more {
			s.rubbish.Retain(bad, func(u store.Unreadable) bool { return strings.HasPrefix(u.Path, prefix) })
			return list, nil
		}
	}
}

// decodePage returns the objects, and notes what is none.
func (s *Store) decodePage(kind *api.Kind, kvs []*mvccpb.KeyValue, list *store.List, bad map[string]bool) []api.Object {
	found := make([]struct {
		obj api.Object
		key api.Key
		err error
	}, len(kvs))
	store.Spread(len(kvs), func(i int) {
		found[i].obj, found[i].key, found[i].err = decode(kind, kvs[i])
	})
	items := make([]api.Object, 0, len(kvs))
	for i, f := range found {
		s.history.held(kvs[i])
		if f.err != nil {
			bad[string(kvs[i].Key)] = true
			s.unreadable(kind, kvs[i], f.err)
			list.Unreadable = append(list.Unreadable, f.key)
			continue
		}
		items = append(items, f.obj)
	}
	return items
}

func (s *Store) unreadable(kind *api.Kind, kv *mvccpb.KeyValue, reason error) {
	s.rubbish.Add(s.log, store.Unreadable{Kind: kind, Path: string(kv.Key), Reason: reason}, strconv.FormatInt(kv.ModRevision, 10))
}

// Unreadable implements store.Inspector.
func (s *Store) Unreadable() []store.Unreadable { return s.rubbish.Unreadable() }

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, obj api.Object) (api.Object, error) {
	kind, key, err := store.CheckObject(obj)
	if err != nil {
		return nil, err
	}
	value, err := store.EncodeNew(kind, obj, time.Now())
	if err != nil {
		return nil, err
	}
	path := keyPath(kind, key)
	r, err := call(ctx, s, func(ctx context.Context, c *clientv3.Client) (*clientv3.TxnResponse, error) {
		return c.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(path), "=", 0)).
			Then(clientv3.OpPut(path, string(value))).
			Commit()
	})
	if err == nil && !r.Succeeded {
		err = store.ErrExists
	}
	if err != nil {
		return nil, fmt.Errorf("create %s %s: %w", kind.Name, key, err)
	}
	return store.Decode(kind, key, value, strconv.FormatInt(r.Header.Revision, 10))
}

// Update implements store.Store. It reads what is there first, for its uid and
// generation.
func (s *Store) Update(ctx context.Context, obj api.Object) (api.Object, error) {
	kind, key, err := store.CheckObject(obj)
	if err != nil {
		return nil, err
	}
	next, err := s.update(ctx, kind, key, obj)
	if err != nil {
		return nil, fmt.Errorf("update %s %s: %w", kind.Name, key, err)
	}
	return next, nil
}

func (s *Store) update(ctx context.Context, kind *api.Kind, key api.Key, obj api.Object) (api.Object, error) {
	old, err := s.get(ctx, kind, key)
	if err != nil {
		return nil, err
	}
	version := obj.GetResourceVersion()
	if old.GetResourceVersion() != version {
		return nil, store.ErrConflict
	}
	value, changed, err := store.EncodeNext(kind, old, obj)
	if err != nil {
		return nil, err
	}
	if !changed {
		return old, nil
	}
	r, err := s.writeIf(ctx, kind, key, version, clientv3.OpPut(keyPath(kind, key), string(value)))
	if err != nil {
		return nil, err
	}
	return store.Decode(kind, key, value, strconv.FormatInt(r.Header.Revision, 10))
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, kind *api.Kind, key api.Key, resourceVersion string) error {
	if err := store.CheckKey(kind, key); err != nil {
		return err
	}
	if _, err := s.writeIf(ctx, kind, key, resourceVersion, clientv3.OpDelete(keyPath(kind, key))); err != nil {
		return fmt.Errorf("delete %s %s: %w", kind.Name, key, err)
	}
	return nil
}

// writeIf does op if the key exists in the version asked for; an empty version
// is any.
func (s *Store) writeIf(ctx context.Context, kind *api.Kind, key api.Key, version string, op clientv3.Op) (*clientv3.TxnResponse, error) {
	path := keyPath(kind, key)
	condition := clientv3.Compare(clientv3.CreateRevision(path), ">", 0)
	if version != "" {
		revision, err := strconv.ParseInt(version, 10, 64)
		if err != nil || revision <= 0 {
			return nil, store.ErrConflict // no version of ours
		}
		condition = clientv3.Compare(clientv3.ModRevision(path), "=", revision)
	}
	r, err := call(ctx, s, func(ctx context.Context, c *clientv3.Client) (*clientv3.TxnResponse, error) {
		return c.Txn(ctx).If(condition).Then(op).Else(clientv3.OpGet(path, clientv3.WithKeysOnly())).Commit()
	})
	if err != nil || r.Succeeded {
		return r, err
	}
	if found := r.Responses[0].Response.(*pb.ResponseOp_ResponseRange); len(found.ResponseRange.Kvs) > 0 {
		return nil, store.ErrConflict
	}
	return nil, store.ErrNotFound
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.dialing; d != nil {
		select {
		case <-d.done:
			if d.client != nil {
				d.client.Close() // always reports that its context ended
			}
		default: // dial closes it
		}
		s.dialing = nil
	}
	return nil
}
