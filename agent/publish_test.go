package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

// TestEndpointsOfPodsThatGo: the endpoint of a pod name goes with the last container
// that has the name, whether or not the journal can be written.
func TestEndpointsOfPodsThatGo(t *testing.T) {
	for _, noJournal := range []bool{false, true} {
		t.Run(fmt.Sprintf("noJournal=%t", noJournal), func(t *testing.T) {
			s := memory.New()
			ctx, stop := context.WithCancel(t.Context())
			stop() // the journal is not tried again
			a := &Agent{config: Config{NodeName: "node01"}, store: s, health: &health.Tracker{}, log: slog.New(slog.DiscardHandler),
				publisher: newPublisher(s, "node01", slog.New(slog.DiscardHandler)), running: ctx}
			var err error
			a.ipam, err = ipam.Open(filepath.Join(t.TempDir(), "ipam.journal"), "node01", ipam.Options{Store: s, Log: a.log})
			if err != nil {
				t.Fatal(err)
			}
			pool := api.IPPoolKind.New().(*api.IPPool)
			pool.Name, pool.Spec.CIDR = "p", "10.244.0.0/24"
			if err := a.ipam.SetPools([]*api.IPPool{pool}); err != nil {
				t.Fatal(err)
			}
			if _, err := a.ipam.Reconcile(nil); err != nil {
				t.Fatal(err)
			}
			first, second := ipam.ID{ContainerID: "first", IfName: "eth0"}, ipam.ID{ContainerID: "second", IfName: "eth0"}
			for _, id := range []ipam.ID{first, second} {
				al, err := a.ipam.Allocate(t.Context(), ipam.Request{ID: id, Namespace: "default", Pod: "p"})
				if err != nil {
					t.Fatal(err)
				}
				a.publisher.attached(endpointOf("node01", al))
				a.detaching.start(id, func() { <-t.Context().Done() }) // of the kernel's part nothing is done
			}
			published := func() string {
				t.Helper()
				if err := a.publisher.flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				got, err := s.Get(t.Context(), api.WorkloadEndpointKind, api.Key{Namespace: "default", Name: "p"})
				if errors.Is(err, store.ErrNotFound) {
					return ""
				} else if err != nil {
					t.Fatal(err)
				}
				return got.(*api.WorkloadEndpoint).Spec.ContainerID
			}
			if noJournal {
				if err := a.ipam.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				defer a.ipam.Close()
			}
			for _, step := range []struct {
				goes ipam.ID
				want string
			}{{second, "first"}, {first, ""}} {
				a.takeDown(step.goes)
				if got := published(); got != step.want {
					t.Errorf("%s was taken down: the store has the endpoint of %q, want %q", step.goes, got, step.want)
				}
			}
		})
	}
}
