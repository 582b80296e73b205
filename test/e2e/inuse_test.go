package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
)

// TestAddressesInUse: no pod gets an address that something else has, though the
// node's journal does not know: a pod that an earlier network attached, by its route
// or as a neighbour, and one that only the store knows.
func TestAddressesInUse(t *testing.T) {
	c := newCluster(t, []pod{{name: "default/first", node: "node01"}})
	// The next addresses that were never used.
	next := c.addresses["default/first"][0]
	var taken []netip.Addr
	for range 3 {
		next = next.Next()
		taken = append(taken, next)
	}
	script := `ip link add cali1 type veth peer name cali2; ip link set cali1 up; ip link set cali2 up
		ip route add $0/32 dev cali1; ip neigh add $1 dev cali1 lladdr 02:00:00:00:00:01 nud stale`
	if out, err := c.At(t.Context(), lab.Node("node01"), "sh", "-c", script, taken[0].String(), taken[1].String()); err != nil {
		t.Fatalf("%s%v", out, err)
	}
	s, err := c.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := api.WorkloadEndpointKind.New().(*api.WorkloadEndpoint)
	w.Namespace, w.Name = "default", "stranded"
	w.Spec = api.WorkloadEndpointSpec{Node: "gone", Pod: "stranded", ContainerID: "c0ffee", Endpoint: "eth0", IPNetworks: []string{taken[2].String() + "/32"}}
	if _, err := s.Create(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	for _, action := range []lab.Action{lab.Kill, lab.Start} {
		if err := c.Control(lab.ControlRequest{Node: "node01", Action: action}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b", "d", "e"} {
		c.addPod(t, pod{name: "default/" + name, node: "node01"})
		if got := c.addresses["default/"+name][0]; slices.Contains(taken, got) {
			t.Errorf("pod %s got %s, which is in use", name, got)
		}
	}
	if out := c.twill(t, "", "status"); !strings.Contains(out, "nothing is wrong") {
		t.Error(out)
	}
}
