// Package kube keeps objects in the Kubernetes API: Kubernetes' kinds as they
// are, Twill's own as custom resources. Pods take the place of
// WorkloadEndpoints, which are derived from them and can't be written.
//
// It caches no objects. What nobody reads of them, such as managed fields, is
// dropped as they come in, and stays as it is when they are written.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	json "github.com/go-json-experiment/json/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

const (
	callTimeout = 5 * time.Second // of one request whose context has no deadline
	pageSize    = 500             // objects in one request of a list
)

// Config says where the API server is and who we are.
type Config struct {
	// Kubeconfig is a file; empty: the service account of the pod that this
	// process runs in.
	Kubeconfig string
	// Context is one of the kubeconfig's; empty: its current one.
	Context string
	// Server is the URL of the API server; empty: the kubeconfig's or, in a pod, one
	// that is found; see servers.
	Server string
	// Logger gets what the store can't return as an error; nil drops it.
	Logger *slog.Logger
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

// Store implements store.Store, store.Elector, store.Inspector, store.Reconnector,
// store.Remote, store.Orchestrated and store.EventRecorder.
type Store struct {
	store.Peers // of established connections

	log    *slog.Logger
	client *rest.RESTClient
	http   *http.Client
	ctx    context.Context // ends with Close
	close  context.CancelFunc

	rubbish store.Rubbish

	mu   sync.Mutex
	away bool          // the last call did not get through
	back chan struct{} // closed when one does again
}

// Open checks the configuration and returns a store. It does not wait for the
// API server; ctx bounds nothing but Open itself.
func Open(ctx context.Context, c Config) (store.Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	config, err := RESTConfig(c)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	s := &Store{log: c.logger(), back: make(chan struct{})}
	config.Dial = s.dial
	if s.http, err = rest.HTTPClientFor(config); err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	if s.client, err = rest.UnversionedRESTClientForConfigAndClient(config, s.http); err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	s.ctx, s.close = context.WithCancel(context.Background())
	return s, nil
}

// dial connects as the library does by default, and notes the server.
func (s *Store) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext(ctx, network, address)
	if err == nil {
		s.Add(conn.RemoteAddr())
	}
	return conn, err
}

// Orchestrator implements store.Orchestrated.
func (s *Store) Orchestrator() string { return "Kubernetes" }

// serviceProxyPath is where kubeadm puts kube-proxy, and whoever follows it.
const serviceProxyPath = "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"

// ServiceProxy implements store.Orchestrated. A kube-proxy that no node may run
// counts as none: that is how it is put out of service without being deleted.
func (s *Store) ServiceProxy(ctx context.Context) (bool, error) {
	body, err := s.call(ctx, func() *rest.Request { return s.client.Get().AbsPath(serviceProxyPath) })
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	var set struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Status   struct {
			ObservedGeneration     int64 `json:"observedGeneration"`
			DesiredNumberScheduled int   `json:"desiredNumberScheduled"`
		} `json:"status"`
	}
	if err == nil {
		err = json.Unmarshal(body, &set)
	}
	if err != nil {
		return false, fmt.Errorf("get DaemonSet kube-proxy: %w", err)
	}
	seen := set.Status.ObservedGeneration >= set.Metadata.Generation // else it was just made
	return !seen || set.Status.DesiredNumberScheduled > 0, nil
}

// ServiceRanges implements store.Orchestrated by the ServiceCIDR objects, which
// clusters have from Kubernetes 1.33 on.
func (s *Store) ServiceRanges(ctx context.Context) (ranges []netip.Prefix, err error) {
	body, err := s.call(ctx, func() *rest.Request { return s.client.Get().AbsPath("/apis/networking.k8s.io/v1/servicecidrs") })
	var list networkingv1.ServiceCIDRList
	if err == nil {
		err = json.Unmarshal(body, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("list ServiceCIDRs: %w", err)
	}
	for _, object := range list.Items {
		for _, text := range object.Spec.CIDRs {
			prefix, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("ServiceCIDR %s: %w", object.Name, err)
			}
			ranges = append(ranges, prefix.Masked())
		}
	}
	slices.SortFunc(ranges, netip.Prefix.Compare)
	return slices.Compact(ranges), nil
}

// Get implements store.Store. Of a pod it answers also before that has an
// address: the agent needs a pod's labels while it attaches it.
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
	body, err := s.call(ctx, func() *rest.Request { return s.client.Get().AbsPath(objectPath(kind, key)) })
	if err != nil {
		return nil, err
	}
	obj, err := decode(kind, body)
	if err != nil {
		return nil, fmt.Errorf("what the API server keeps at %s is unreadable: %w; delete it or write it anew", objectPath(kind, key), err)
	}
	if obj == nil {
		return nil, store.ErrNotFound // a pod that is no endpoint
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

// page is one answer to a request for a list, or why there is none. Items are
// decoded one by one: a custom resource that is none of ours any more must cost no
// more than itself.
type page struct {
	Metadata metav1.ListMeta   `json:"metadata"`
	Items    []json.RawMessage `json:"items"`
	err      error
}

// pages asks for each page while the one before it is decoded and taken.
func (s *Store) pages(ctx context.Context, kind *api.Kind, namespace string, take func([]api.Object)) (store.List, error) {
	// First, so that a list of another history never gets this one's name.
	cluster, _, err := s.history(ctx)
	if err != nil {
		return store.List{}, fmt.Errorf("list %s: %w", kind.Plural, err)
	}
	path, bad := listPath(kind, namespace), map[string]bool{}
	coming := make(chan page, 1)
	get := func(token string) { coming <- s.page(ctx, kind, path, token) }
	go get("")
	var list store.List
	for {
		p := <-coming
		if p.err != nil {
			return store.List{}, fmt.Errorf("list %s: %w", kind.Plural, p.err)
		}
		if list.Revision == "" {
			revision, err := strconv.ParseUint(p.Metadata.ResourceVersion, 10, 64)
			if err != nil {
				return store.List{}, fmt.Errorf("list %s: its resourceVersion %q is no number", kind.Plural, p.Metadata.ResourceVersion)
			}
			list.Revision, list.Reached = position{cluster, revision}.String(), revision
		}
		token := p.Metadata.Continue
		if token != "" {
			go get(token)
		}
		take(s.decodePage(kind, p.Items, &list, bad))
		if token == "" {
			s.rubbish.Retain(bad, func(u store.Unreadable) bool {
				return u.Kind == kind && (namespace == "" || strings.HasPrefix(u.Path, path+"/"))
			})
			return list, nil
		}
	}
}

// page asks for the page that the token of the one before names.
func (s *Store) page(ctx context.Context, kind *api.Kind, path, token string) (p page) {
	body, err := s.call(ctx, func() *rest.Request {
		r := selected(kind, s.client.Get().AbsPath(path)).Param("limit", strconv.Itoa(pageSize))
		if token != "" {
			r.Param("continue", token)
		}
		return r
	})
	if err != nil {
		return page{err: err}
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return page{err: fmt.Errorf("the API server's answer is no list: %w", err)}
	}
	return p
}

// decodePage returns the objects, and notes what is none.
func (s *Store) decodePage(kind *api.Kind, raw []json.RawMessage, list *store.List, bad map[string]bool) []api.Object {
	objects, errs := make([]api.Object, len(raw)), make([]error, len(raw))
	store.Spread(len(raw), func(i int) { objects[i], errs[i] = decode(kind, raw[i]) })
	for i, err := range errs {
		if err != nil {
			key := s.unreadable(kind, raw[i], err)
			bad[objectPath(kind, key)] = true
			list.Unreadable = append(list.Unreadable, key)
		}
	}
	// Pods that are no endpoints are no objects, either.
	return slices.DeleteFunc(objects, func(obj api.Object) bool { return obj == nil })
}

// unreadable remembers a custom resource that is none of ours, such as one that was
// stored when its definition was another. The API server does not check what it reads.
func (s *Store) unreadable(kind *api.Kind, raw []byte, reason error) api.Key {
	var o struct {
		Metadata struct{ ResourceVersion string }
	}
	_ = json.Unmarshal(raw, &o)
	key := keyOf(raw)
	s.rubbish.Add(s.log, store.Unreadable{Kind: kind, Path: objectPath(kind, key), Reason: reason}, o.Metadata.ResourceVersion)
	return key
}

// Unreadable implements store.Inspector.
func (s *Store) Unreadable() []store.Unreadable { return s.rubbish.Unreadable() }

// Create implements store.Store. A status is not taken over by kinds that the
// API server keeps it apart of: Update writes it.
func (s *Store) Create(ctx context.Context, obj api.Object) (api.Object, error) {
	kind, key, err := store.CheckObject(obj)
	if err != nil {
		return nil, err
	}
	created, err := s.create(ctx, kind, key, obj)
	if err != nil {
		return nil, fmt.Errorf("create %s %s: %w", kind.Name, key, err)
	}
	return created, nil
}

func (s *Store) create(ctx context.Context, kind *api.Kind, key api.Key, obj api.Object) (api.Object, error) {
	if err := writable(kind); err != nil {
		return nil, err
	}
	obj = obj.DeepCopyObject().(api.Object)
	obj.SetResourceVersion("")
	obj.SetUID("")
	obj.GetObjectKind().SetGroupVersionKind(kind.New().GetObjectKind().GroupVersionKind())
	value, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	body, err := s.call(ctx, func() *rest.Request {
		return s.client.Post().AbsPath(listPath(kind, key.Namespace)).SetHeader("Content-Type", "application/json").Body(value)
	})
	if err != nil {
		return nil, err
	}
	return decode(kind, body)
}

// Update implements store.Store. It reads what is there first, and writes what
// differs from it as patches: what was dropped when the object was read stays.
// Of an object whose status is written apart, the rest is written first; when
// somebody else writes in between, that part is kept and ErrConflict returned.
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
	if err := writable(kind); err != nil {
		return nil, err
	}
	old, err := s.get(ctx, kind, key)
	if err != nil {
		return nil, err
	}
	if old.GetResourceVersion() != obj.GetResourceVersion() {
		return nil, store.ErrConflict
	}
	patches, err := patchesOf(kind, old, obj)
	if err != nil {
		return nil, err
	}
	next := old
	for _, p := range patches {
		value, err := p.encode(next.GetResourceVersion())
		if err != nil {
			return nil, err
		}
		body, err := s.call(ctx, func() *rest.Request {
			return s.client.Patch(p.contentType).AbsPath(objectPath(kind, key) + p.subresource).Body(value)
		})
		if err != nil {
			return nil, err
		}
		if next, err = decode(kind, body); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, kind *api.Kind, key api.Key, resourceVersion string) error {
	if err := store.CheckKey(kind, key); err != nil {
		return err
	}
	if err := s.delete(ctx, kind, key, resourceVersion); err != nil {
		return fmt.Errorf("delete %s %s: %w", kind.Name, key, err)
	}
	return nil
}

func (s *Store) delete(ctx context.Context, kind *api.Kind, key api.Key, resourceVersion string) error {
	if err := writable(kind); err != nil {
		return err
	}
	options := metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"}}
	if resourceVersion != "" {
		options.Preconditions = &metav1.Preconditions{ResourceVersion: &resourceVersion}
	}
	value, err := json.Marshal(options)
	if err != nil {
		return err
	}
	_, err = s.call(ctx, func() *rest.Request {
		return s.client.Delete().AbsPath(objectPath(kind, key)).SetHeader("Content-Type", "application/json").Body(value)
	})
	return err
}

// writable refuses what is not ours to write: the kubelet publishes a pod's
// addresses, and makes and removes pods.
func writable(kind *api.Kind) error {
	if kind == api.WorkloadEndpointKind {
		return errors.New("workload endpoints are Kubernetes' pods here: use kubectl, or change what made the pod")
	}
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.close()
	s.http.CloseIdleConnections()
	return nil
}
