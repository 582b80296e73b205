package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
)

const receivesAll = `{"host-gw":{},"vxlan":{"vni":1,"port":8472,"mac":"02:00:00:00:00:01"}}`

// reservedScene is a planner with two peers, one of them on another network.
func reservedScene() *Planner {
	pl := NewPlanner("master")
	pl.SetUnderlay(fabric.Underlay{Link: "eth0", MTU: 1500, Prefixes: []netip.Prefix{
		netip.MustParsePrefix("172.16.10.10/24"), netip.MustParsePrefix("fd00:172:16:10::10/64"),
	}})
	pl.SetReserved([]Reserved{
		{Prefix: netip.MustParsePrefix("172.17.0.0/16"), What: "the network of docker0"},
		{Prefix: netip.MustParsePrefix("192.0.2.1/32"), What: "the default gateway"},
		{Prefix: netip.MustParsePrefix("198.51.100.10/32"), What: "the store"},
		{Prefix: netip.MustParsePrefix("10.99.0.1/32"), What: "an address of tunl0", Local: true},
	})
	pl.Put(nodeOf("master", "172.16.10.10", receivesAll))
	pl.Put(nodeOf("node01", "172.16.10.11", receivesAll))
	pl.Put(nodeOf("node02", "10.20.0.12", receivesAll))
	return pl
}

func overlapsOf(pl *Planner) (subjects []string) {
	for _, p := range pl.Problems() {
		if p.Code == string(health.PoolOverlap) {
			subjects = append(subjects, p.Subject)
		}
	}
	return subjects
}

// TestNoRouteCapturesReservedPrefixes: a block that overlaps what nodes need gets
// neither a route nor a blackhole, and is reported; any other block gets its route.
func TestNoRouteCapturesReservedPrefixes(t *testing.T) {
	for _, c := range []struct {
		name, block, owner string
		routed, reported   bool
		pool               string // that the block is of; "": none is known
	}{
		{"free", "10.244.0.0/26", "node01", true, false, ""},
		{"free, of this node", "10.244.0.0/26", "master", true, false, ""},
		{"the peer's own address", "10.20.0.0/28", "node02", false, true, ""},
		{"another node's address", "10.20.0.0/28", "node01", false, true, ""},
		{"another node's address, of this node", "10.20.0.0/28", "master", false, true, ""},
		{"exactly a node's address", "10.20.0.12/32", "node01", false, true, ""},
		{"next to a node's address", "10.20.0.16/28", "node01", true, false, ""},
		{"part of the underlay's network", "172.16.10.128/28", "node01", false, true, "172.16.10.0/24"},
		{"part of the underlay's network, of this node", "172.16.10.128/28", "master", false, true, "172.16.10.0/24"},
		{"part of the underlay's network that is set aside", "172.16.10.128/28", "node01", true, false, "172.16.10.128/25"},
		{"part of the underlay's network that is set aside, of this node", "172.16.10.128/28", "master", true, false, "172.16.10.128/25"},
		{"part of a bridge's network that is set aside", "172.17.4.0/26", "node01", true, false, "172.17.4.0/22"},
		{"around the underlay's network", "172.16.0.0/20", "node01", false, true, ""},
		{"part of the underlay's IPv6 network", "fd00:172:16:10::100/122", "node01", false, true, "fd00:172:16:10::/64"},
		{"part of a bridge's network", "172.17.4.0/26", "node01", false, true, "172.17.0.0/16"},
		{"exactly a bridge's network", "172.17.0.0/16", "node01", false, true, ""},
		{"part of a bridge's network, of this node", "172.17.4.0/26", "master", false, true, "172.17.0.0/16"},
		{"the default gateway", "192.0.2.0/29", "node01", false, true, ""},
		{"the store", "198.51.100.0/26", "node01", false, true, ""},
		{"the store, of this node", "198.51.100.0/26", "master", false, true, ""},
		{"an address of the host itself", "10.99.0.0/26", "node01", true, false, ""},
		{"an address of the host itself, of this node", "10.99.0.0/26", "master", true, false, ""},
	} {
		for _, blockFirst := range []bool{false, true} {
			pl := reservedScene()
			block, pool := blockOf("b", c.block, c.owner), api.IPPoolKind.New().(*api.IPPool)
			pool.Name, pool.Spec.CIDR = "p", c.pool
			if blockFirst {
				pl = NewPlanner("master")
				pl.Put(block)
				pl.Flush()
				other := reservedScene()
				pl.SetUnderlay(other.fabric.self.Underlay)
				pl.SetReserved(other.fabric.fromHost)
				for _, n := range []string{"node02 10.20.0.12", "node01 172.16.10.11", "master 172.16.10.10"} {
					name, address, _ := strings.Cut(n, " ")
					pl.Put(nodeOf(name, address, receivesAll))
					pl.Flush()
				}
			} else {
				pl.Put(block)
			}
			if c.pool != "" {
				pl.Put(pool)
			}
			_, routed := pl.Flush().Routes.Get(netip.MustParsePrefix(c.block))
			if routed != c.routed {
				t.Errorf("%s, block first %t: routed %t, want %t", c.name, blockFirst, routed, c.routed)
			}
			if got := overlapsOf(pl); slices.Contains(got, "IPAMBlock "+c.block) != c.reported {
				t.Errorf("%s, block first %t: reported %v, want %t", c.name, blockFirst, got, c.reported)
			}
			pl.Delete(api.IPAMBlockKind, api.KeyOf(block))
			pl.Delete(api.IPPoolKind, api.KeyOf(pool))
			if got := pl.Flush(); len(overlapsOf(pl)) > 0 || got.Routes.Len() > 0 {
				t.Errorf("%s: after the block: %v, %d routes", c.name, overlapsOf(pl), got.Routes.Len())
			}
		}
	}
}

// TestARouteYieldsToANodesAddress, in the flush in which the node gets it, and
// comes back when the node is gone.
func TestARouteYieldsToANodesAddress(t *testing.T) {
	pl := reservedScene()
	pl.Put(blockOf("b", "10.244.0.0/26", "node01"))
	pl.Put(blockOf("own", "10.244.1.0/26", "master"))
	pl.SetLocal(Local{HostInterface: "tw-a", Pod: api.Key{Namespace: "a", Name: "p"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.7")}})
	routes := func(when string, want ...string) {
		t.Helper()
		var got []string
		for p := range pl.Flush().Routes.All() {
			got = append(got, p.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: routes %v, want %v", when, got, want)
		}
	}
	routes("at first", "10.244.0.0/26", "10.244.1.0/26", "10.244.1.7/32")
	pl.Put(nodeOf("node03", "10.244.0.9", receivesAll))
	routes("a node inside a peer's block", "10.244.1.0/26", "10.244.1.7/32")
	pl.Put(nodeOf("node03", "10.244.1.7", receivesAll))
	routes("a node with a pod's address", "10.244.0.0/26")
	if got := overlapsOf(pl); !slices.Contains(got, "pod a/p") {
		t.Errorf("the pod is not reported: %v", got)
	}
	pl.Delete(api.NodeKind, api.Key{Name: "node03"})
	routes("the node is gone", "10.244.0.0/26", "10.244.1.0/26", "10.244.1.7/32")
	if got := overlapsOf(pl); len(got) > 0 {
		t.Errorf("still reported: %v", got)
	}
}

// TestPoolOverlapsAreReported before a node claims a block, however the pool came.
func TestPoolOverlapsAreReported(t *testing.T) {
	for cidr, want := range map[string]string{
		"10.244.0.0/16":    "",
		"172.16.10.0/24":   "172.16.10.0/24 contains or is part of 172.16.10.10 of node master; 172.16.10.11 of node node01; 172.16.10.0/24, the network of eth0",
		"10.0.0.0/8":       "10.0.0.0/8 contains or is part of 10.20.0.12 of node node02; 10.99.0.1/32, an address of tunl0",
		"172.17.32.0/20":   "172.17.32.0/20 contains or is part of 172.17.0.0/16, the network of docker0",
		"10.99.0.0/24":     "10.99.0.0/24 contains or is part of 10.99.0.1/32, an address of tunl0",
		"198.51.100.10/32": "198.51.100.10/32 contains or is part of 198.51.100.10/32, the store",
	} {
		pl := reservedScene()
		pool := api.IPPoolKind.New().(*api.IPPool)
		pool.Name, pool.Spec.CIDR = "p", cidr
		pl.Put(pool)
		pl.Flush()
		got := ""
		for _, p := range pl.Problems() {
			got = p.Detail
		}
		if got != want {
			t.Errorf("%s: %q, want %q", cidr, got, want)
		}
		pl.Delete(api.IPPoolKind, api.KeyOf(pool))
		pl.Flush()
		if got := pl.Problems(); len(got) > 0 {
			t.Errorf("%s: after it is gone: %v", cidr, got)
		}
	}
}

// TestANodesEventDirtiesOnlyBlocksAroundItsAddress: a new node costs no planning
// of other peers.
func TestANodesEventDirtiesOnlyBlocksAroundItsAddress(t *testing.T) {
	pl := reservedScene()
	pl.Put(blockOf("b", "10.244.0.0/26", "node01"))
	pl.Put(blockOf("c", "10.244.1.0/26", "node02"))
	pl.Flush()
	pl.Put(nodeOf("node03", "10.20.0.13", receivesAll))
	if _, other := pl.fabric.dirty["node01"]; other || len(pl.fabric.dirty) != 1 || pl.fabric.allDirty {
		t.Errorf("dirty %v, all %t, want node03 alone", pl.fabric.dirty, pl.fabric.allDirty)
	}
}
