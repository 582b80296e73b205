package agent

import (
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/store/memory"
)

// TestHostPortOfAPodThatIsLeaving: an attachment waits for a host port of a pod that
// is being taken down, and is refused one of a pod that stays.
func TestHostPortOfAPodThatIsLeaving(t *testing.T) {
	a := &Agent{}
	var err error
	a.ipam, err = ipam.Open(filepath.Join(t.TempDir(), "ipam.journal"), "node01", ipam.Options{Store: memory.New(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.ipam.Close()
	pool := api.IPPoolKind.New().(*api.IPPool)
	pool.Name, pool.Spec.CIDR = "p", "10.244.0.0/24"
	if err := a.ipam.SetPools([]*api.IPPool{pool}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ipam.Reconcile(nil); err != nil {
		t.Fatal(err)
	}
	ports := []api.WorkloadEndpointPort{{Protocol: corev1.ProtocolTCP, Port: 80, HostPort: 8080}}
	extra, err := json.Marshal(journaled{Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	id := ipam.ID{ContainerID: "old", IfName: "eth0"}
	if _, err := a.ipam.Allocate(t.Context(), ipam.Request{ID: id, Namespace: "default", Pod: "old", Extra: extra}); err != nil {
		t.Fatal(err)
	}
	if err := a.awaitHostPorts(t.Context(), ports); err == nil || errors.Is(err, cni.ErrTryAgain) || !strings.Contains(err.Error(), "default/old") {
		t.Errorf("the port of a pod that stays: %v", err)
	}
	if _, _, err := a.ipam.Leave(id); err != nil {
		t.Fatal(err)
	}
	deviceGone := make(chan struct{})
	a.detaching.start(id, func() {
		<-deviceGone
		if _, _, err := a.ipam.Release(id); err != nil {
			t.Error(err)
		}
	})
	got := make(chan error, 1)
	go func() { got <- a.awaitHostPorts(t.Context(), ports) }()
	select {
	case err := <-got:
		t.Errorf("before the port was free: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(deviceGone)
	if err := <-got; err != nil {
		t.Errorf("after the port was free: %v", err)
	}
}
