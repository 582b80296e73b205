package agent

import (
	"io"
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/plan"
)

// TestFollowUnderlay: the node's address is the one that the others are told, which
// may not be the one of the default route, and may change.
func TestFollowUnderlay(t *testing.T) {
	ns, other := testnet.New(t), testnet.New(t)
	for i, address := range []string{"192.0.2.1/24", "198.51.100.1/24"} {
		link := []string{"front", "back"}[i]
		testnet.Pair(t, ns, other, link, link)
		ns.Address(t, link, address)
	}
	ns.Route(t, "0.0.0.0/0", "192.0.2.2")

	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	a := &Agent{
		log: log, publisher: newPublisher(apiServer{}, "n", log), health: &health.Tracker{}, planner: plan.NewPlanner("n"), ipam: &ipam.Allocator{},
		config: Config{NodeName: "n"},
	}
	told := func(addresses ...string) {
		n := &corev1.Node{}
		n.Name = "n"
		for _, address := range addresses {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: address})
		}
		ns.Do(func() { a.nodeTold(n) })
	}
	is := func(when, link, address string) {
		t.Helper()
		got, _ := a.underlay.found.Addr(false)
		if planned := a.planner.Flush(); a.underlay.found.Link != link || got.String() != address || planned.Links.Len() == 0 {
			t.Errorf("%s: %s on %s, want %s on %s", when, got, a.underlay.found.Link, address, link)
		}
	}
	ns.Do(a.publishNodeOnChange)
	if a.publisher.edit != nil {
		t.Error("the node's object is written before it is known what the node's address is")
	}
	told("198.51.100.1")
	is("the other device's", "back", "198.51.100.1")
	if a.publisher.edit == nil {
		t.Error("the node's object is not written")
	}
	told("192.0.2.1")
	is("changed", "front", "192.0.2.1")
	told("203.0.113.1")
	is("translated on its way", "front", "192.0.2.1")
	told()
	is("none is told", "front", "192.0.2.1")

	front, err := ns.Netlink().LinkByName("front")
	if err == nil {
		err = ns.Netlink().LinkDel(front)
	}
	if err != nil {
		t.Fatal(err)
	}
	ns.Do(a.followUnderlay)
	is("it is gone", "front", "192.0.2.1")
	if !a.underlay.lost || !a.health.Has(health.NodeAddressLost) {
		t.Error("nobody is told that the address is lost")
	}
	told("198.51.100.1")
	is("another is there", "back", "198.51.100.1")
	if a.underlay.lost || a.health.Has(health.NodeAddressLost) {
		t.Error("the address still counts as lost")
	}
}
