package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/store"
)

// apiServer is a store whose pods are made by others.
type apiServer struct {
	store.Store
	pod *api.WorkloadEndpoint
	err error
}

func (apiServer) Orchestrator() string { return "a test" }

func (apiServer) ServiceProxy(context.Context) (bool, error) { return false, nil }

func (apiServer) ServiceRanges(context.Context) ([]netip.Prefix, error) { return nil, nil }

func (s apiServer) Get(context.Context, *api.Kind, api.Key) (api.Object, error) { return s.pod, s.err }

func TestLookUp(t *testing.T) {
	pod := func(uid, app string) *api.WorkloadEndpoint {
		w := api.WorkloadEndpointKind.New().(*api.WorkloadEndpoint)
		w.Namespace, w.Name, w.UID, w.Labels = "default", "web", types.UID(uid), map[string]string{"app": app}
		w.Spec.IPNetworks = []string{"10.244.1.7/32"}
		return w
	}
	away := fmt.Errorf("%w: no route", store.ErrUnavailable)
	for _, test := range []struct {
		name  string
		s     apiServer
		known *api.WorkloadEndpoint
		uid   string
		want  string // label, where the pod may start
		err   error
	}{
		{"the API server knows", apiServer{pod: pod("1", "new")}, pod("1", "old"), "1", "new", nil},
		{"a runtime that tells no uid", apiServer{pod: pod("1", "new")}, nil, "", "new", nil},
		{"another of the name", apiServer{pod: pod("2", "new")}, nil, "1", "", nil},
		{"nobody of the name", apiServer{err: store.ErrNotFound}, pod("1", "old"), "1", "", store.ErrNotFound},
		{"an outage, and the pod was here", apiServer{err: away}, pod("1", "old"), "1", "old", nil},
		{"an outage, and another was here", apiServer{err: away}, pod("2", "old"), "1", "", cni.ErrTryAgain},
		{"an outage, and a new pod", apiServer{err: away}, nil, "1", "", cni.ErrTryAgain},
		{"an outage, and no uid", apiServer{err: away}, pod("1", "old"), "", "", cni.ErrTryAgain},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := &Agent{store: test.s, publisher: newPublisher(test.s, "node01", nil)}
			if test.known != nil {
				a.podsHere.put(test.known)
			}
			att := cni.Attachment{Namespace: "default", Pod: "web", UID: test.uid}
			had, err := a.lookUp(t.Context(), &att)
			if (err == nil) != (test.want != "") || !errors.Is(err, test.err) && test.err != nil {
				t.Fatalf("got %v", err)
			}
			if err == nil {
				// Only while the store is away the other nodes can't hear of a new address.
				if keeps := len(had) == 1 && had[0].String() == "10.244.1.7"; keeps != (test.s.err != nil) {
					t.Errorf("the pod is to have %v again", had)
				}
				if diff := cmp.Diff(map[string]string{"app": test.want}, att.Labels); diff != "" || att.UID != "1" {
					t.Errorf("uid %s, labels %s", att.UID, diff)
				}
			}
		})
	}
}
