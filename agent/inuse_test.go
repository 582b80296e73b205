package agent

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/store/memory"
)

// TestPodsWithoutInterface: pods that have an address in the API and were never
// attached by this installation are named until they are gone or attached, and
// keep their addresses; pods that are being deleted are not named.
func TestPodsWithoutInterface(t *testing.T) {
	s := apiServer{Store: memory.New()}
	a := &Agent{config: Config{NodeName: "node01"}, store: s, health: &health.Tracker{}, log: slog.New(slog.DiscardHandler),
		planner: plan.NewPlanner("node01"), publisher: newPublisher(s, "node01", nil), onHost: map[ipam.Holder]struct{}{}}
	var err error
	a.ipam, err = ipam.Open(filepath.Join(t.TempDir(), "ipam.journal"), "node01", ipam.Options{Store: s.Store, Log: a.log})
	if err != nil {
		t.Fatal(err)
	}
	defer a.ipam.Close()
	pool := api.IPPoolKind.New().(*api.IPPool)
	pool.Name, pool.Spec.CIDR = "p", "10.244.0.0/28"
	if err := a.ipam.SetPools([]*api.IPPool{pool}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ipam.Reconcile(nil); err != nil {
		t.Fatal(err)
	}
	attach := func(name string) netip.Addr {
		t.Helper()
		al, err := a.ipam.Allocate(t.Context(), ipam.Request{ID: ipam.ID{ContainerID: name, IfName: "eth0"}, Namespace: "default", Pod: name})
		if err != nil {
			t.Fatal(err)
		}
		return al.Addresses[0]
	}
	says := func(name, uid, node string, networks ...string) {
		w := api.WorkloadEndpointKind.New().(*api.WorkloadEndpoint)
		w.Namespace, w.Name, w.UID, w.Spec.Node, w.Spec.IPNetworks = "default", name, types.UID(uid), node, networks
		a.put(w)
	}
	named := func(want ...string) {
		t.Helper()
		a.reportTroubled()
		var got []string
		for _, c := range a.health.Conditions() {
			if c.Code == health.PodInterfaceMissing {
				got = append(got, c.String())
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("named are %q, want %q", got, want)
		}
	}
	const text = " and no interface: another network or an earlier installation attached it"

	own := attach("own") // claims the block, and gets its first address
	says("own", "1", "node01", own.String()+"/32")
	says("starts", "2", "node01")
	says("old", "3", "node01", "10.244.0.2/32")
	says("other", "4", "node01", "192.0.2.1/32")
	says("elsewhere", "5", "node02", "10.244.0.3/32")
	named("PodInterfaceMissing default/old: has 10.244.0.2"+text, "PodInterfaceMissing default/other: has 192.0.2.1"+text)
	for range 4 {
		if got := attach(string(rune('a' + len(a.ipam.List())))).String(); got == "10.244.0.2" || got == "10.244.0.3" {
			t.Errorf("%s was given to another pod", got)
		}
	}

	// One is deleted, one is started anew and is known by its address.
	a.deleted(api.WorkloadEndpointKind, api.Key{Namespace: "default", Name: "other"})
	if got := attach("old"); got.String() != "10.244.0.2" {
		t.Errorf("the pod is known by 10.244.0.2 and got %s", got)
	}
	named()

	// One goes: its interface first, its object later.
	if _, ok, err := a.ipam.Release(ipam.ID{ContainerID: "own", IfName: "eth0"}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	says("own", "1", "node01", own.String()+"/32")
	named()
}
