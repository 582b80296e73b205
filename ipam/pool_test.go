package ipam

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/twill-net/twill/api"
)

func ipPool(name, cidr string, blockSize int) *api.IPPool {
	return &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: api.IPPoolSpec{CIDR: cidr, BlockSize: blockSize}}
}

func mustPool(t testing.TB, cidr string, blockSize int) Pool {
	t.Helper()
	p, err := ParsePool(ipPool("p", cidr, blockSize))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParsePool(t *testing.T) {
	for _, c := range []struct {
		cidr   string
		size   int
		blocks uint64
		err    string
	}{
		{"10.244.0.0/16", 0, 1024, ""},
		{"10.244.0.0/16", 32, 65536, ""},
		{"10.0.0.0/8", 20, 4096, ""},
		{"10.244.0.0/28", 0, 1, ""},
		{"10.244.0.7/32", 0, 1, ""},
		{"fd00:10::/64", 0, 1 << 32, ""},
		{"fd00:10::/112", 0, 1024, ""},
		{"::/0", 116, 1 << 32, ""},
		{"10.244.0.1/16", 0, 0, "write 10.244.0.0/16"},
		{"::ffff:10.0.0.0/104", 0, 0, "not in canonical form"},
		{"10.244.0.0", 0, 0, "is not a prefix"},
		{"10.244.0.0/16", 19, 0, "not between 20 and 32"},
		{"10.244.0.0/16", 33, 0, "not between 20 and 32"},
		{"10.244.0.0/28", 26, 0, "does not fit"},
		{"fd00::/64", 64, 0, "not between 116 and 128"},
	} {
		p, err := ParsePool(ipPool("p", c.cidr, c.size))
		switch {
		case c.err == "" && err != nil, c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s/%d: error %v, want %q", c.cidr, c.size, err, c.err)
		case c.err == "" && p.Blocks() != c.blocks:
			t.Errorf("%s/%d: %d blocks, want %d", c.cidr, c.size, p.Blocks(), c.blocks)
		}
	}
	bad := ipPool("p", "10.0.0.0/8", 0)
	bad.Spec.NodeSelector = "zone =="
	if _, err := ParsePool(bad); err == nil || !strings.Contains(err.Error(), "nodeSelector") {
		t.Errorf("bad selector: %v", err)
	}
}

func TestBlocksOfAPool(t *testing.T) {
	for _, c := range []struct {
		cidr  string
		index uint64
		want  string
		name  string
	}{
		{"10.244.0.0/16", 0, "10.244.0.0/26", "10-244-0-0-26"},
		{"10.244.0.0/16", 1, "10.244.0.64/26", "10-244-0-64-26"},
		{"10.244.0.0/16", 1023, "10.244.255.192/26", "10-244-255-192-26"},
		{"fd00::/48", 1, "fd00::40/122", "fd00-0000-0000-0000-0000-0000-0000-0040-122"},
		{"fd00::/48", 1<<32 - 1, "fd00::3f:ffff:ffc0/122", "fd00-0000-0000-0000-0000-003f-ffff-ffc0-122"},
		{"::/64", 0, "::/122", "0000-0000-0000-0000-0000-0000-0000-0000-122"},
	} {
		got := mustPool(t, c.cidr, 0).Block(c.index)
		if got.String() != c.want || BlockName(got) != c.name {
			t.Errorf("block %d of %s: %s named %s, want %s named %s", c.index, c.cidr, got, BlockName(got), c.want, c.name)
		}
		if errs := validation.IsDNS1123Subdomain(c.name); errs != nil {
			t.Errorf("%s: %v", c.name, errs)
		}
	}
}

func TestCandidatesVisitEveryBlockOnce(t *testing.T) {
	for _, cidr := range []string{"10.244.0.0/26", "10.244.0.0/25", "10.244.0.0/16", "fd00::/112"} {
		p := mustPool(t, cidr, 0)
		seen := map[netip.Prefix]bool{}
		var order []netip.Prefix
		for b := range p.Candidates("node01") {
			if seen[b] || !p.Prefix.Overlaps(b) || p.BlockOf(b.Addr()) != b {
				t.Fatalf("%s: block %s is seen twice or not in the pool", cidr, b)
			}
			seen[b] = true
			order = append(order, b)
		}
		if uint64(len(seen)) != p.Blocks() {
			t.Errorf("%s: %d of %d blocks", cidr, len(seen), p.Blocks())
		}
		i := 0
		for b := range p.Candidates("node01") {
			if b != order[i] {
				t.Fatalf("%s: the order differs the second time", cidr)
			}
			i++
		}
	}
}

func TestNodesRarelyWantTheSameBlock(t *testing.T) {
	p := mustPool(t, "10.244.0.0/16", 0)
	first := map[netip.Prefix]int{}
	for i := range 100 {
		for b := range p.Candidates(fmt.Sprintf("node%02d", i)) {
			first[b]++
			break
		}
	}
	// 100 throws at 1024 blocks by pure chance hit 95 different ones.
	if len(first) < 90 {
		t.Errorf("100 nodes start at only %d different blocks", len(first))
	}
}

func TestReservedIn(t *testing.T) {
	for cidr, blockBits := range map[string]int{
		"10.244.0.0/16": 26, "10.244.0.0/20": 20, "10.244.0.0/24": 24, "10.244.0.0/25": 32, "fd00::/112": 122,
	} {
		pool := mustPool(t, cidr, blockBits)
		for i := range min(pool.Blocks(), 8) {
			block, want := pool.Block(i), 0
			for a := block.Addr(); block.Contains(a); a = a.Next() {
				if pool.Reserved(a) {
					want++
				}
			}
			if got := pool.reservedIn(block); got != want {
				t.Errorf("%s of %s: %d reserved, want %d", block, cidr, got, want)
			}
		}
	}
}

func TestReserved(t *testing.T) {
	for _, c := range []struct {
		cidr, addr string
		want       bool
	}{
		{"10.244.0.0/16", "10.244.0.0", true},
		{"10.244.0.0/16", "10.244.255.255", true},
		{"10.244.0.0/16", "10.244.0.255", true},
		{"10.244.0.0/16", "10.244.1.0", true},
		{"10.244.0.0/16", "10.244.1.128", false},
		{"10.244.0.128/25", "10.244.0.255", true},
		{"10.244.0.0/25", "10.244.0.127", true},
		{"10.244.0.0/23", "10.244.0.255", true},
		{"10.244.0.0/16", "10.245.0.0", false},
		{"10.244.0.4/31", "10.244.0.4", false},
		{"10.244.0.4/32", "10.244.0.4", false},
		{"10.244.0.4/30", "10.244.0.7", true},
		{"fd00::/64", "fd00::", true},
		{"fd00::/64", "fd00::ffff:ffff:ffff:ffff", false},
		{"fd00::/127", "fd00::", false},
	} {
		if got := mustPool(t, c.cidr, 0).Reserved(netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("%s in %s: reserved %v", c.addr, c.cidr, got)
		}
	}
}
