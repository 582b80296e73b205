package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/api"
)

// TestAllocateWaitsForWhatIsLeaving: a runtime may attach a pod as soon as another
// was detached, while the addresses of that one are still being released.
func TestAllocateWaitsForWhatIsLeaving(t *testing.T) {
	for _, want := range [][]string{nil, {"10.0.0.3"}} {
		t.Run(fmt.Sprint(want), func(t *testing.T) {
			inNodes(t, 1, []*api.IPPool{ipPool("p", "10.0.0.0/29", 29)}, func(t *testing.T, n *nodes) {
				a := n.all["node00"]
				if got := n.fill("node00", 100); got != 6 {
					t.Fatalf("%d addresses, want 6", got)
				}
				if _, err := a.Allocate(t.Context(), request("next", want...)); err == nil {
					t.Fatal("an address was given out twice")
				}
				id := a.List()[2].ID
				if addr := a.List()[2].Addresses[0]; want != nil && addr.String() != want[0] {
					t.Fatalf("%s has %s", id, addr)
				}
				if _, _, err := a.Leave(id); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				time.AfterFunc(claimTimeout/2, func() { mustRelease(t, a.Allocator, id.ContainerID) })
				mustAllocate(t, a.Allocator, request("next", want...))
				if took := time.Since(began); took != claimTimeout/2 {
					t.Errorf("it took %s", took)
				}
				// What does not leave in time is an error, and a caller may give up before.
				if _, _, err := a.Leave(request("next").ID); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := a.Allocate(ctx, request("last", want...)); err == nil {
					t.Error("an address was given out twice")
				}
			})
		})
	}
}

// TestOneFamilyIsUsedUp: a pod gets an address of each family, or none.
func TestOneFamilyIsUsedUp(t *testing.T) {
	pools := []*api.IPPool{ipPool("v4", "10.0.0.0/24", 26), ipPool("v6", "fd00::/126", 126)}
	inNodes(t, 1, pools, func(t *testing.T, n *nodes) {
		a := n.all["node00"]
		if got := n.fill("node00", 100); got != 3 { // ::0 is reserved
			t.Fatalf("%d addresses, want 3", got)
		}
		n.passes(time.Second)
		if err := a.Exhausted(); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "fd00::/126") || strings.Contains(err.Error(), "10.0.0.0") {
			t.Errorf("exhausted: %v", err)
		}
		if used := len(a.users); used != 6 {
			t.Errorf("%d addresses are used, want 6", used)
		}
		n.setPools(pools[0], ipPool("v6", "fd00::/120", 126))
		n.passes(time.Second)
		if err := a.Exhausted(); err != nil {
			t.Errorf("there is room, and %v", err)
		}
	})
}

// TestNodeAddressesInABlock: no pod gets an address that a node has, also of blocks
// that are claimed later.
func TestNodeAddressesInABlock(t *testing.T) {
	inNodes(t, 1, []*api.IPPool{ipPool("p", "10.0.0.0/29", 29)}, func(t *testing.T, n *nodes) {
		a := n.all["node00"]
		node := netip.MustParseAddr("10.0.0.2")
		a.Hold(Holder{Host: "node other"}, []netip.Addr{node})
		if got := n.fill("node00", 100); got != 5 {
			t.Errorf("%d addresses, want 5", got)
		}
		if id, used := a.users[node]; used {
			t.Errorf("%s was given to %s", node, id)
		}
		a.Hold(Holder{Host: "node other"}, nil)
		if got := mustAllocate(t, a.Allocator, request("x"))[0]; got != node {
			t.Errorf("got %s, want %s", got, node)
		}
	})
}
