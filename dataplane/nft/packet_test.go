package nft

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// path is a client and a server with a node between them, whose table is ours.
type path struct {
	client, node, server *testnet.NS
	kernel               *Kernel
	plan                 *plan.Plan
	family               pathFamily
}

// pathFamily is what differs between IPv4 and IPv6.
type pathFamily struct {
	number                   int
	addr                     plan.Type
	src, dst                 plan.Field
	client, node1            string
	node2, server, service   string
	bits, forwarding, listen string
	any                      string
}

var pathFamilies = []pathFamily{
	{4, plan.IPv4Addr, plan.SrcIP4, plan.DstIP4, "10.0.1.2", "10.0.1.1", "10.0.2.1", "10.0.2.2", "10.1.0.10",
		"/24", "ipv4/ip_forward", "10.0.2.2", "0.0.0.0/0"},
	{6, plan.IPv6Addr, plan.SrcIP6, plan.DstIP6, "fd01::2", "fd01::1", "fd02::1", "fd02::2", "fd10::a",
		"/64", "ipv6/conf/all/forwarding", "[fd02::2]", "::/0"},
}

// onPaths runs a test over IPv4 and over IPv6.
func onPaths(t *testing.T, test func(t *testing.T, x *path)) {
	for _, f := range pathFamilies {
		t.Run(fmt.Sprint("IPv", f.number), func(t *testing.T) {
			x := &path{client: testnet.New(t), node: testnet.New(t), server: testnet.New(t), plan: plan.New(), family: f}
			testnet.Pair(t, x.client, x.node, "up", "tw-client")
			testnet.Pair(t, x.node, x.server, "tw-server", "up")
			x.client.Address(t, "up", f.client+f.bits)
			x.node.Address(t, "tw-client", f.node1+f.bits)
			x.node.Address(t, "tw-server", f.node2+f.bits)
			x.server.Address(t, "up", f.server+f.bits)
			x.client.Route(t, f.any, f.node1)
			x.server.Route(t, f.any, f.node2)
			x.node.Sysctl(t, f.forwarding, "1")
			x.kernel = open(t, x.node)
			test(t, x)
			list(t, x.node)
		})
	}
}

func (x *path) apply(t *testing.T) { t.Helper(); apply(t, x.kernel, x.plan) }

// serve answers each connection with the port it came to and the client's
// address.
func (x *path) serve(t *testing.T, ports ...int) {
	t.Helper()
	for _, port := range ports {
		var l net.Listener
		x.server.Do(func() {
			var err error
			if l, err = net.Listen("tcp", net.JoinHostPort(x.family.server, fmt.Sprint(port))); err != nil {
				t.Fatal(err)
			}
		})
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				from := netip.MustParseAddrPort(c.RemoteAddr().String()).Addr()
				fmt.Fprintf(c, "%d %s", port, from)
				c.Close()
			}
		}()
	}
}

// dial connects from the client and returns the server's answer.
func (x *path) dial(to string, port int) (answer string, err error) {
	return x.dialFor(5*time.Second, to, port)
}

func (x *path) dialFor(timeout time.Duration, to string, port int) (answer string, err error) {
	x.client.Do(func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", net.JoinHostPort(to, fmt.Sprint(port)), timeout); err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		var b []byte
		b, err = io.ReadAll(c)
		answer = string(b)
	})
	return answer, err
}

func (x *path) expect(t *testing.T, to string, port int, want string) {
	t.Helper()
	if got, err := x.dial(to, port); err != nil || got != want {
		t.Errorf("%s port %d answered %q, %v; want %q", to, port, got, err, want)
	}
}

// expectDrop: nothing answers, not even an error.
func (x *path) expectDrop(t *testing.T, to string, port int) {
	t.Helper()
	var timeout net.Error
	if got, err := x.dialFor(300*time.Millisecond, to, port); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%s port %d answered %q, %v; want a timeout", to, port, got, err)
	}
}

func (x *path) hook(name, kind, hook string, priority int, rules ...plan.Rule) {
	x.plan.Chains.Set(name, plan.Chain{Hook: hook, Type: kind, Priority: priority, Rules: rules})
}

func (x *path) element(set string, e plan.Element, key ...any) {
	x.plan.Elements.Set(plan.ElementKey{Set: set, Key: plan.KeyOf(key...)}, e)
}

func TestDispatchDecides(t *testing.T) {
	onPaths(t, func(t *testing.T, x *path) {
		x.serve(t, 80, 81)
		verdict := []plan.Type{plan.VerdictType}
		x.plan.Sets.Set("to-pod", plan.Set{Key: []plan.Type{plan.IfName}, Value: verdict})
		x.plan.Sets.Set("ports", plan.Set{Key: []plan.Type{plan.InetProto, plan.InetService}, Value: verdict, Interval: true})
		x.hook("forward", "filter", "forward", 0,
			plan.R(plan.CtState{"established", "related"}, plan.Accept),
			plan.R(plan.Dispatch{Fields: plan.Concat{plan.OutInterface}, Map: "to-pod"}))
		x.plan.Chains.Set("in", plan.Chain{Rules: []plan.Rule{
			plan.R(plan.Dispatch{Fields: plan.Concat{plan.L4Proto, plan.DstPort}, Map: "ports"}), plan.R(plan.Drop)}})
		x.element("ports", plan.Element{End: plan.KeyOf(uint8(6), uint16(80)), Verdict: "accept"}, uint8(6), uint16(70))
		x.apply(t)
		x.expect(t, x.family.server, 81, "81 "+x.family.client) // not isolated yet
		x.element("to-pod", plan.Element{Verdict: "goto in"}, "tw-server")
		x.apply(t)
		x.expect(t, x.family.server, 80, "80 "+x.family.client)
		x.expectDrop(t, x.family.server, 81)
	})
}

func TestSetsOfNetsDecide(t *testing.T) {
	onPaths(t, func(t *testing.T, x *path) {
		x.serve(t, 80)
		client := addr(x.family.client)
		x.plan.Sets.Set("nets", plan.Set{Key: []plan.Type{x.family.addr}, Interval: true})
		x.hook("forward", "filter", "forward", 0,
			plan.R(plan.InSet{Fields: plan.Concat{x.family.src}, Set: "nets"}, plan.Drop))
		x.element("nets", plan.Element{End: plan.KeyOf(client.Prev())}, client.Prev().Prev())
		x.element("nets", plan.Element{End: plan.KeyOf(client.Next().Next())}, client.Next())
		x.apply(t)
		x.expect(t, x.family.server, 80, "80 "+x.family.client)
		x.element("nets", plan.Element{End: plan.KeyOf(client)}, client.Prev().Prev())
		x.apply(t)
		x.expectDrop(t, x.family.server, 80)
	})
}

func TestRejectAnswers(t *testing.T) {
	onPaths(t, func(t *testing.T, x *path) {
		x.hook("forward", "filter", "forward", 0, plan.R(plan.Counter{}, plan.Reject{}))
		x.apply(t)
		if _, err := x.dial(x.family.server, 80); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("TCP: %v; want connection refused", err)
		}
		x.client.Do(func() {
			c, err := net.Dial("udp", net.JoinHostPort(x.family.server, "53"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			c.Write([]byte("?"))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("UDP: %v; want port unreachable", err)
			}
		})
		if out := list(t, x.node); out != "" && strings.Count(out, "counter packets 1 ") != 2 {
			t.Errorf("a rejected packet is not counted once:\n%s", out)
		}
	})
}

func TestMasqueradeHidesTheClient(t *testing.T) {
	onPaths(t, func(t *testing.T, x *path) {
		x.serve(t, 80)
		x.hook("postrouting", "nat", "postrouting", 100,
			plan.R(plan.Interface{Field: plan.OutInterface, Name: "tw-ser*"}, plan.Masquerade{}))
		x.apply(t)
		x.expect(t, x.family.server, 80, "80 "+x.family.node2)
	})
}

func TestSpoofedSourceIsFound(t *testing.T) {
	onPaths(t, func(t *testing.T, x *path) {
		x.serve(t, 80)
		x.hook("forward", "filter", "forward", 0, plan.R(plan.SpoofedSource{}, plan.Drop))
		x.hook("input", "filter", "input", 0, plan.R(plan.LocalAddress{Source: true}, plan.Drop))
		x.apply(t)
		x.expect(t, x.family.server, 80, "80 "+x.family.client)
		x.client.Address(t, "up", x.family.service+x.family.bits)
		x.client.Do(func() {
			d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP(x.family.service)}}
			if c, err := d.Dial("tcp", net.JoinHostPort(x.family.server, "80")); err == nil {
				c.Close()
				t.Error("a packet from an address that is not routed there got through")
			}
		})
	})
}

// endpoints are the server's ports, as slots of the service.
func (x *path) endpoints(ports ...int) {
	key := []plan.Type{x.family.addr, plan.InetProto, plan.InetService, plan.Mark}
	x.plan.Sets.Set("ep", plan.Set{Key: key, Value: []plan.Type{x.family.addr, plan.InetService}})
	for i, port := range ports {
		x.element("ep", plan.Element{Value: plan.KeyOf(addr(x.family.server), uint16(port))},
			addr(x.family.service), uint8(6), uint16(80), uint32(i))
	}
}

// frontend is a service's key.
func (x *path) frontend(more ...plan.Field) plan.Concat {
	return append(plan.Concat{x.family.dst, plan.L4Proto, plan.DstPort}, more...)
}

func TestDNATBalances(t *testing.T) {
	onPaths(t, func(t *testing.T, x *path) {
		x.serve(t, 8080, 8081)
		x.endpoints(8080, 8081)
		x.hook("prerouting", "nat", "prerouting", -100,
			plan.R(plan.DNAT{Family: x.family.number, Fields: x.frontend(plan.RandomMod(2)), Map: "ep"}))
		x.hook("forward", "filter", "forward", 0, plan.R(plan.CtStatusDNAT{}, plan.Accept), plan.R(plan.Drop))
		x.apply(t)
		seen := map[string]int{}
		for range 60 { // both are missed with probability 2⁻⁵⁹
			answer, err := x.dial(x.family.service, 80)
			if err != nil {
				t.Fatal(err)
			}
			seen[answer]++
		}
		for _, port := range []int{8080, 8081} {
			if seen[fmt.Sprintf("%d %s", port, x.family.client)] == 0 {
				t.Errorf("port %d got no connection: %v", port, seen)
			}
		}
		x.expectDrop(t, x.family.server, 8080) // not translated
	})
}

// TestAffinity: a client keeps its endpoint; when that goes, it gets another
// and keeps that, without anybody's help.
func TestAffinity(t *testing.T) {
	onPaths(t, func(t *testing.T, x *path) {
		x.serve(t, 8080, 8081, 8082, 8083)
		x.endpoints(8080, 8081, 8082, 8083)
		x.plan.Sets.Set("slot", plan.Set{Key: []plan.Type{plan.Mark}, Value: []plan.Type{plan.Mark}})
		for i := range uint32(4) {
			x.element("slot", plan.Element{Value: plan.KeyOf(i)}, i)
		}
		client := x.frontend(x.family.src)
		x.plan.Sets.Set("aff", plan.Set{Dynamic: true, Timeout: time.Hour, Value: []plan.Type{plan.Mark},
			Key: []plan.Type{x.family.addr, plan.InetProto, plan.InetService, x.family.addr}})
		pick := plan.R(plan.SetMark{Fields: plan.Concat{plan.RandomMod(4)}, Map: "slot"})
		update := plan.R(plan.UpdateMap{Fields: client, Map: "aff", Timeout: time.Minute})
		dnat := plan.R(plan.DNAT{Family: x.family.number, Fields: x.frontend(plan.PacketMark), Map: "ep"})
		x.hook("prerouting", "nat", "prerouting", -100,
			pick,
			plan.R(plan.SetMark{Fields: client, Map: "aff"}),
			update, dnat,
			plan.R(plan.DeleteFromMap{Fields: client, Map: "aff"}),
			// The slot that was remembered is gone: the first is taken.
			plan.R(plan.SetMark{Fields: plan.Concat{plan.RandomMod(1)}, Map: "slot"}), update, dnat)
		x.apply(t)
		first, err := x.dial(x.family.service, 80)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			x.expect(t, x.family.service, 80, first)
		}
		ports := []string{"8080", "8081", "8082", "8083"}
		slot := slices.Index(ports, first[:4])
		gone := plan.ElementKey{Set: "ep", Key: plan.KeyOf(addr(x.family.service), uint8(6), uint16(80), uint32(slot))}
		if slot == 0 {
			// The chain falls back on slot 0: let that be another endpoint.
			x.plan.Elements.Set(gone, plan.Element{Value: plan.KeyOf(addr(x.family.server), uint16(8083))})
			x.apply(t)
			x.expect(t, x.family.service, 80, "8083 "+x.family.client)
			return
		}
		x.plan.Elements.Delete(gone)
		x.apply(t)
		for range 20 {
			x.expect(t, x.family.service, 80, "8080 "+x.family.client)
		}
	})
}
