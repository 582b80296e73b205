package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

var errClosed = errors.New("the store was closed")

// RESTConfig reads the kubeconfig, or what a pod is given.
func RESTConfig(c Config) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if c.Kubeconfig != "" {
		config, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig},
			&clientcmd.ConfigOverrides{CurrentContext: c.Context}).ClientConfig()
	}
	if err != nil {
		return nil, err
	}
	config.UserAgent = rest.DefaultKubernetesUserAgent()
	// The API server itself says when it has too much to do (429), and is
	// obeyed; a limit of the client's own would only delay a burst.
	config.QPS = -1
	// Of the server's answers only its errors are decoded by the library.
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	config.Wrap(lively)
	switch {
	case c.Server != "":
		config.Host = c.Server
	case c.Kubeconfig == "":
		found := findServers(config.Host, os.DirFS("/"), c.logger())
		config.Host = found.all[0].url
		config.Wrap(found.wrap)
	}
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.ContentType = runtime.ContentTypeJSON
	return config, nil
}

// sharing guards transports, which stores with one configuration share.
var sharing sync.Mutex

// lively has a connection tried on which nothing comes. All requests share one, and
// none of them closes it: when the API server's machine is gone, or this node has
// another address, the library takes 45 seconds to notice.
func lively(rt http.RoundTripper) http.RoundTripper {
	sharing.Lock()
	defer sharing.Unlock()
	if t, ok := rt.(*http.Transport); ok && t.HTTP2 == nil {
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: callTimeout, PingTimeout: callTimeout}
	}
	return rt
}

// resource is the kind that the API server has in this kind's place.
func resource(kind *api.Kind) (group, version, plural string) {
	if kind == api.WorkloadEndpointKind {
		return "", "v1", "pods"
	}
	return kind.Group, kind.Version, kind.Plural
}

// listPath is where the objects of a kind are, or those of one namespace.
func listPath(kind *api.Kind, namespace string) string {
	group, version, plural := resource(kind)
	path := "/apis/" + group + "/" + version
	if group == "" {
		path = "/api/" + version
	}
	if namespace != "" {
		path += "/namespaces/" + namespace
	}
	return path + "/" + plural
}

func objectPath(kind *api.Kind, key api.Key) string {
	return listPath(kind, key.Namespace) + "/" + key.Name
}

// selected leaves to the API server to pass over pods that are no endpoints: it
// then tells of one that is none any more as if it were deleted. For pods of the
// host's network it has no selector before Kubernetes 1.28.
func selected(kind *api.Kind, r *rest.Request) *rest.Request {
	if kind != api.WorkloadEndpointKind {
		return r
	}
	return r.Param("fieldSelector", "status.podIP!=,status.phase!=Succeeded,status.phase!=Failed")
}

// call runs one request, within bounded time, and classifies its error. A
// request that failed is not sent again, but for what the server asks to be sent
// later: that is for the caller to decide.
func (s *Store) call(ctx context.Context, request func() *rest.Request) ([]byte, error) {
	callCtx, cancel := s.bound(ctx)
	defer cancel()
	result := request().Do(callCtx)
	body, _ := result.Raw()
	err := s.classify(ctx, result.Error())
	s.noteReach(result.Error(), err)
	return body, err
}

// AwaitReconnect implements store.Reconnector. The API server is not asked for it:
// the first call that gets through again ends the waits of all the others.
func (s *Store) AwaitReconnect(ctx context.Context) {
	s.mu.Lock()
	back := s.back
	s.mu.Unlock()
	select {
	case <-back:
	case <-ctx.Done():
	}
}

// noteReach learns from a call's error, and what it means, whether the API server
// is away. One that answers but can't serve tells nothing: while it starts it is as
// good as away, and where it fails with one kind only, the others would have that
// tried again and again.
func (s *Store) noteReach(err, meaning error) {
	var status apierrors.APIStatus
	answered, served := err == nil || errors.As(err, &status), !errors.Is(meaning, store.ErrUnavailable)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !answered && !served:
		s.away = true
	case answered && served && s.away:
		s.away = false
		close(s.back)
		s.back = make(chan struct{})
	}
}

// bound is a context that also ends with the store, and after callTimeout if the
// caller's has no deadline.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	timeout := context.CancelFunc(func() {})
	if _, ok := ctx.Deadline(); !ok {
		ctx, timeout = context.WithTimeout(ctx, callTimeout)
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel(); timeout() }
}

// classify turns an error of the client library into what callers branch on.
// ctx is the caller's.
func (s *Store) classify(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() == context.Canceled {
		return ctx.Err()
	}
	for _, known := range []error{store.ErrUnavailable, store.ErrCompacted, store.ErrRestored} {
		if errors.Is(err, known) {
			return err
		}
	}
	var status apierrors.APIStatus
	switch answered := errors.As(err, &status); {
	case s.ctx.Err() != nil:
		return fmt.Errorf("%w: %w", store.ErrUnavailable, errClosed)
	case answered:
		return refusal(status.Status())
	case ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: no answer within %s", store.ErrUnavailable, callTimeout)
	}
	return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

// refusal is what the API server's answer means.
func refusal(s metav1.Status) error {
	named := s.Details != nil && s.Details.Name != ""
	switch {
	case s.Reason == metav1.StatusReasonAlreadyExists:
		return store.ErrExists
	case s.Code == http.StatusConflict:
		return store.ErrConflict
	case s.Code == http.StatusGone:
		return store.ErrCompacted
	case s.Code == http.StatusNotFound && named && s.Details.Kind != "namespaces":
		return store.ErrNotFound
	case s.Code == http.StatusNotFound && named:
		return fmt.Errorf("%w: %s", store.ErrNotFound, s.Message)
	case s.Code == http.StatusNotFound:
		return errors.New("the API server does not know this kind: apply Twill's custom resource definitions (deploy/crds)")
	case s.Code == http.StatusTooManyRequests, s.Code >= http.StatusInternalServerError:
		// Also what is said while it starts, and when its own store is away.
		return fmt.Errorf("%w: %s", store.ErrUnavailable, oneLine(s.Message))
	case s.Code == http.StatusUnauthorized:
		return fmt.Errorf("%w: they are wrong, have run out, or were revoked with the pod or node that they are of", store.ErrUnauthorized)
	}
	return errors.New(oneLine(s.Message))
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
