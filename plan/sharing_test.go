package plan

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
)

// TestNodesWithOneAddress: the tunnel leads to the Node with the latest claim, else to
// the older one, whatever its name and the order of events; its blocks and those of
// the other Nodes are reached through it.
func TestNodesWithOneAddress(t *testing.T) {
	const shared = "172.16.10.11"
	mac := map[string]MAC{"a": {2, 0, 0, 0, 0, 0xa}, "b": {2, 0, 0, 0, 0, 0xb}}
	node := func(name string, created int64, claim string) *corev1.Node {
		n := nodeOf(name, shared, `{"vxlan":{"vni":1,"port":8472,"mac":"`+mac[name].String()+`"}}`)
		n.CreationTimestamp.Time = time.Unix(created, 0)
		if claim != "" {
			n.Annotations[api.AddressClaimAnnotation] = claim
		}
		return n
	}
	key := NeighbourKey{VXLANLink, netip.MustParseAddr(shared)}
	for _, c := range []struct {
		name, want string
		nodes      []*corev1.Node
	}{
		{"the older", "b", []*corev1.Node{node("a", 2, ""), node("b", 1, "")}},
		{"the one with a claim", "a", []*corev1.Node{node("a", 2, "2026-01-01T00:00:00Z"), node("b", 1, "")}},
		{"the latest claim", "b", []*corev1.Node{node("a", 2, "2026-01-01T00:00:00Z"), node("b", 3, "2026-01-01T00:00:00.5Z")}},
		{"alone", "a", []*corev1.Node{node("a", 2, "")}},
	} {
		for _, blocksFirst := range []bool{true, false} {
			for i := range c.nodes {
				pl := newScenePlanner()
				blocks := []api.Object{blockOf("a", "10.244.1.0/26", "a"), blockOf("b", "10.244.2.0/26", "b")}
				tell := func(objects ...api.Object) {
					for _, obj := range objects {
						pl.Put(obj)
						pl.Flush()
					}
				}
				if blocksFirst {
					tell(blocks...)
				}
				for j := range c.nodes {
					tell(c.nodes[(i+j)%len(c.nodes)])
				}
				if !blocksFirst {
					tell(blocks...)
				}
				p := pl.Flush()
				if got, _ := p.Neighbours.Get(key); got != mac[c.want] {
					t.Errorf("%s, first %d, blocks first %t: the tunnel leads to %s, want %s", c.name, i, blocksFirst, got, c.want)
				}
				if want := len(c.nodes); p.FDB.Len() != 1 || p.Routes.Len() != want {
					t.Errorf("%s: %d forwarding entries and %d routes, want 1 and %d", c.name, p.FDB.Len(), p.Routes.Len(), want)
				}
			}
		}
	}
}

// TestANodeWithThisNodesAddress: packets for its pods are not sent to this node
// itself, over and over.
func TestANodeWithThisNodesAddress(t *testing.T) {
	pl := newScenePlanner()
	pl.Put(nodeOf("master", "172.16.10.10", receivesAll))
	pl.Put(nodeOf("old-name", "172.16.10.10", receivesAll))
	pl.Put(blockOf("b", "10.244.1.0/26", "old-name"))
	if n := pl.Flush().Routes.Len(); n != 0 {
		t.Errorf("%d routes to this node itself", n)
	}
	if others, _ := pl.Contenders(); len(others) != 1 || others[0].Node != "old-name" || others[0].Precedes {
		t.Errorf("contenders %v", others)
	}
}
