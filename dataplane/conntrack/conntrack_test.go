package conntrack_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/conntrack"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// connection is what a test makes of one: from the client to a front end,
// answered by somebody.
type connection struct {
	name                            string
	protocol                        uint8
	client, destination, answeredBy string
}

func addrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

func (c connection) make(t *testing.T, ns *testnet.NS) {
	t.Helper()
	from, to, by := addrPort(c.client), addrPort(c.destination), addrPort(c.answeredBy)
	tuple := func(src, dst netip.AddrPort) netlink.IPTuple {
		return netlink.IPTuple{Protocol: c.protocol, SrcIP: src.Addr().AsSlice(), SrcPort: src.Port(), DstIP: dst.Addr().AsSlice(), DstPort: dst.Port()}
	}
	family := uint8(unix.AF_INET6)
	if from.Addr().Is4() {
		family = unix.AF_INET
	}
	flow := &netlink.ConntrackFlow{FamilyType: family, Forward: tuple(from, to), Reverse: tuple(by, from), TimeOut: 300}
	if c.protocol == unix.IPPROTO_TCP {
		flow.ProtoInfo = &netlink.ProtoInfoTCP{State: 3}
	}
	if err := ns.Netlink().ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(family), flow); err != nil {
		t.Fatalf("make connection %q: %v", c.name, err)
	}
}

// left returns the names of the connections that are still in the table.
func left(t *testing.T, ns *testnet.NS, all []connection) []string {
	t.Helper()
	there := map[string]bool{}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := ns.Netlink().ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			there[fmt.Sprint(f.Forward.Protocol, f.Forward.SrcIP, f.Forward.SrcPort)] = true
		}
	}
	names := map[string]bool{}
	for _, c := range all {
		client := addrPort(c.client)
		if there[fmt.Sprint(c.protocol, client.Addr(), client.Port())] {
			names[c.name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func open(t *testing.T, ns *testnet.NS) *conntrack.Kernel {
	t.Helper()
	var k *conntrack.Kernel
	ns.Do(func() {
		var err error
		if k, err = conntrack.Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(k.Close)
	return k
}

var (
	dns4  = plan.Frontend{Addr: netip.MustParseAddr("10.1.0.10"), Port: 53}
	dns6  = plan.Frontend{Addr: netip.MustParseAddr("fd10::a"), Port: 53}
	node4 = plan.Frontend{Addr: netip.MustParseAddr("192.168.7.1"), Port: 30053}
)

var connections = []connection{
	{"to the first backend", unix.IPPROTO_UDP, "10.0.0.1:1001", "10.1.0.10:53", "10.244.0.2:53"},
	{"to the second backend", unix.IPPROTO_UDP, "10.0.0.1:1002", "10.1.0.10:53", "10.244.0.3:53"},
	{"to another port of a backend", unix.IPPROTO_UDP, "10.0.0.1:1003", "10.1.0.10:53", "10.244.0.2:5353"},
	{"not translated", unix.IPPROTO_UDP, "10.0.0.1:1004", "10.1.0.10:53", "10.1.0.10:53"},
	{"another port", unix.IPPROTO_UDP, "10.0.0.1:1005", "10.1.0.10:54", "10.244.0.9:54"},
	{"node port, to the first backend", unix.IPPROTO_UDP, "10.0.0.1:1006", "192.168.7.1:30053", "10.244.0.2:53"},
	{"TCP", unix.IPPROTO_TCP, "10.0.0.1:1007", "10.1.0.10:53", "10.244.0.9:53"},
	{"IPv6, to the first backend", unix.IPPROTO_UDP, "[fd00::1]:1001", "[fd10::a]:53", "[fd00:1::2]:53"},
	{"IPv6, to the second backend", unix.IPPROTO_UDP, "[fd00::1]:1002", "[fd10::a]:53", "[fd00:1::3]:53"},
}

// but returns the names of all connections except some.
func but(gone ...string) []string {
	var out []string
	for _, c := range connections {
		if !slices.Contains(gone, c.name) {
			out = append(out, c.name)
		}
	}
	slices.Sort(out)
	return out
}

func backends(texts ...string) plan.Backends {
	var out plan.Backends
	for _, text := range texts {
		out = append(out, addrPort(text))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

func TestStaleConnectionsGo(t *testing.T) {
	for _, c := range []struct {
		name string
		plan func(p *plan.Plan)
		gone []string
	}{
		{"nothing dirty", func(p *plan.Plan) {}, nil},
		{"both serve", func(p *plan.Plan) {
			p.UDPFrontends.Set(dns4, backends("10.244.0.2:53", "10.244.0.3:53"))
		}, []string{"to another port of a backend", "not translated"}},
		{"one serves", func(p *plan.Plan) {
			p.UDPFrontends.Set(dns4, backends("10.244.0.3:53"))
		}, []string{"to the first backend", "to another port of a backend", "not translated"}},
		{"scaled to zero", func(p *plan.Plan) {
			p.UDPFrontends.Set(dns4, nil)
		}, []string{"to the first backend", "to the second backend", "to another port of a backend", "not translated"}},
		{"deleted", func(p *plan.Plan) {
			p.UDPFrontends.Set(dns4, backends("10.244.0.2:53"))
			p.UDPFrontends.Delete(dns4)
		}, []string{"to the first backend", "to the second backend", "to another port of a backend"}},
		{"clean", func(p *plan.Plan) {
			p.UDPFrontends.Set(dns4, nil)
			p.UDPFrontends.MarkClean(dns4)
		}, nil},
		{"node port", func(p *plan.Plan) {
			p.UDPFrontends.Set(node4, backends("10.244.0.3:53"))
		}, []string{"node port, to the first backend"}},
		{"IPv6", func(p *plan.Plan) {
			p.UDPFrontends.Set(dns6, backends("[fd00:1::3]:53"))
		}, []string{"IPv6, to the first backend"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := testnet.New(t)
			for _, c := range connections {
				c.make(t, ns)
			}
			p := plan.New()
			c.plan(p)
			n, err := open(t, ns).Apply(p)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(but(c.gone...), left(t, ns, connections)); diff != "" {
				t.Errorf("connections left (-want +got):\n%s", diff)
			}
			if n != len(c.gone) {
				t.Errorf("says that %d were deleted, want %d", n, len(c.gone))
			}
			if p.UDPFrontends.DirtyLen() != 0 {
				t.Error("front ends are dirty still")
			}
		})
	}
}

func TestAFailureLeavesFrontendsDirty(t *testing.T) {
	k := open(t, testnet.New(t))
	k.Close()
	p := plan.New()
	p.UDPFrontends.Set(dns4, nil)
	if _, err := k.Apply(p); err == nil {
		t.Error("no error on a closed connection")
	}
	if p.UDPFrontends.DirtyLen() != 1 {
		t.Error("the front end counts as clean")
	}
}

// BenchmarkApply cleans one front end beside 20,000 connections of others.
func BenchmarkApply(b *testing.B) {
	ns := testnet.New(b)
	for i := range 20_000 {
		flow := &netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 300,
			Forward: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: []byte{10, 0, byte(i >> 8), byte(i)}, SrcPort: 1000, DstIP: []byte{10, 1, 0, 11}, DstPort: 53},
			Reverse: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: []byte{10, 1, 0, 11}, SrcPort: 53, DstIP: []byte{10, 0, byte(i >> 8), byte(i)}, DstPort: 1000}}
		if err := ns.Netlink().ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, flow); err != nil {
			b.Fatal(err)
		}
	}
	var k *conntrack.Kernel
	ns.Do(func() {
		var err error
		if k, err = conntrack.Open(); err != nil {
			b.Fatal(err)
		}
	})
	defer k.Close()
	p := plan.New()
	p.UDPFrontends.Set(dns4, nil)
	for b.Loop() {
		p.UDPFrontends.MarkDirty(dns4)
		if _, err := k.Apply(p); err != nil {
			b.Fatal(err)
		}
	}
}

// TestForget takes away all that an address has to do with, and nothing else.
func TestForget(t *testing.T) {
	t.Run("all are read", testForget)
	t.Run("each is asked for", func(t *testing.T) {
		defer conntrack.AskForEach()()
		testForget(t)
	})
	testnet.New(t).Do(func() {
		if err := conntrack.Forget([]netip.Addr{netip.MustParseAddr("10.244.0.2")}); err != nil {
			t.Errorf("without connections: %v", err)
		}
	})
}

func testForget(t *testing.T) {
	ns := testnet.New(t)
	all := []connection{
		{"began it", unix.IPPROTO_UDP, "10.244.0.2:1001", "10.1.0.10:53", "10.244.0.3:53"},
		{"was asked", unix.IPPROTO_TCP, "10.0.0.1:1002", "10.244.0.2:80", "10.244.0.2:80"},
		{"answers for a service", unix.IPPROTO_UDP, "10.0.0.1:1003", "10.1.0.10:53", "10.244.0.2:53"},
		{"another pod", unix.IPPROTO_UDP, "10.0.0.1:1004", "10.1.0.10:53", "10.244.0.3:53"},
		{"IPv6, was asked", unix.IPPROTO_UDP, "[fd00::1]:1001", "[fd00:1::2]:53", "[fd00:1::2]:53"},
		{"IPv6, another pod", unix.IPPROTO_UDP, "[fd00::1]:1002", "[fd00:1::3]:53", "[fd00:1::3]:53"},
	}
	for _, c := range all {
		c.make(t, ns)
	}
	ns.Do(func() {
		if err := conntrack.Forget([]netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00:1::2")}); err != nil {
			t.Error(err)
		}
	})
	if diff := cmp.Diff([]string{"IPv6, another pod", "another pod"}, left(t, ns, all)); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}
}
