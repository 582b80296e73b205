package agent

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/store/memory"
)

// TestAllocateWhatThePodHad: a pod gets the addresses that it had, or others where
// these are taken by now.
func TestAllocateWhatThePodHad(t *testing.T) {
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
	had := []netip.Addr{netip.MustParseAddr("10.244.0.77")}
	request := func(name string) ipam.Request {
		return ipam.Request{ID: ipam.ID{ContainerID: name, IfName: "eth0"}, Namespace: "default", Pod: name}
	}
	again, err := a.allocate(t.Context(), had, request("again"))
	if err != nil || again.Addresses[0] != had[0] {
		t.Errorf("%v, %v; want %v", again.Addresses, err, had)
	}
	other, err := a.allocate(t.Context(), had, request("other"))
	if err != nil || other.Addresses[0] == had[0] {
		t.Errorf("%v, %v; want another address", other.Addresses, err)
	}
}
