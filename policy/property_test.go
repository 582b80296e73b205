package policy

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
)

var (
	seed  = flag.Uint64("seed", 0, "begin the property test with this seed instead of a random one")
	cases = flag.Int("cases", 10_000, "how many random connections the property test tries")
)

// world is a random cluster that changes.
type world struct {
	*rand.Rand
	State
}

func newWorld(seed uint64) *world {
	return &world{rand.New(rand.NewPCG(seed, seed)), State{
		Namespaces: map[string]map[string]string{},
		Endpoints:  map[api.Key]Endpoint{},
		Policies:   map[api.Key]*Policy{},
	}}
}

func pick[T any](w *world, from ...T) T { return from[w.IntN(len(from))] }

func (w *world) chance(percent int) bool { return w.IntN(100) < percent }

func (w *world) namespace() string { return pick(w, "a", "b", "c", "d") }

func (w *world) labels() map[string]string {
	out := map[string]string{}
	for _, key := range []string{"app", "tier", "env"} {
		if w.chance(60) {
			out[key] = pick(w, "x", "y", "z")
		}
	}
	return out
}

func (w *world) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if w.chance(30) {
		s.MatchLabels = map[string]string{pick(w, "app", "tier", NamespaceNameLabel): pick(w, "x", "y", "a", "b")}
	}
	for range w.IntN(3) {
		e := metav1.LabelSelectorRequirement{Key: pick(w, "app", "tier", "env", NamespaceNameLabel)}
		e.Operator = pick(w, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			for range 1 + w.IntN(2) {
				e.Values = append(e.Values, pick(w, "x", "y", "z", "a", "b"))
			}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (w *world) addr() netip.Addr {
	if w.chance(70) {
		return netip.AddrFrom4([4]byte{10, 0, byte(w.IntN(2)), byte(w.IntN(16))})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00::%x:%x", w.IntN(2), w.IntN(16)))
}

func (w *world) block() *networkingv1.IPBlock {
	a := w.addr()
	bits := a.BitLen() - pick(w, 0, 0, 1, 2, 3, 4, 8, a.BitLen())
	prefix := netip.PrefixFrom(a, bits)
	out := &networkingv1.IPBlock{CIDR: prefix.String()}
	if a.Is4() && w.chance(5) { // the same, written as IPv6
		out.CIDR = netip.PrefixFrom(netip.AddrFrom16(a.As16()), 96+bits).String()
	}
	for range w.IntN(3) {
		e := netip.PrefixFrom(w.addr(), min(prefix.Addr().BitLen(), prefix.Bits()+w.IntN(5)))
		if prefix.Masked().Contains(e.Addr()) {
			out.Except = append(out.Except, e.String())
		}
	}
	return out
}

func (w *world) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range w.IntN(4) {
		var p networkingv1.NetworkPolicyPeer
		switch w.IntN(5) {
		case 0, 1:
			p.IPBlock = w.block()
		case 2:
			p.PodSelector = w.selector()
		case 3:
			p.NamespaceSelector = w.selector()
		default:
			p.PodSelector, p.NamespaceSelector = w.selector(), w.selector()
		}
		out = append(out, p)
	}
	return out
}

func (w *world) ports() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range w.IntN(4) {
		var p networkingv1.NetworkPolicyPort
		if w.chance(70) {
			proto := pick(w, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
			p.Protocol = &proto
		}
		switch w.IntN(5) {
		case 0:
		case 1, 2:
			p.Port = &intstr.IntOrString{Type: intstr.String, StrVal: pick(w, "http", "dns", "odd")}
		default:
			p.Port = &intstr.IntOrString{IntVal: pick(w, int32(1), 80, 80, 81, 82, 65535)}
			if w.chance(40) {
				end := pick(w, p.Port.IntVal, max(p.Port.IntVal, 81), 65535)
				p.EndPort = &end
			}
		}
		out = append(out, p)
	}
	return out
}

func (w *world) policy() *Policy {
	np := &networkingv1.NetworkPolicy{}
	np.Namespace, np.Name = w.namespace(), pick(w, "p", "q", "r", "s")
	np.Spec.PodSelector = *w.selector()
	for range w.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()})
	}
	for range w.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()})
	}
	np.Spec.PolicyTypes = pick(w, nil, nil,
		[]networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	p, err := Parse(np)
	if err != nil {
		panic(err) // the generator makes only valid policies
	}
	return p
}

func (w *world) endpoint() Endpoint {
	e := Endpoint{Key: api.Key{Namespace: w.namespace(), Name: pick(w, "1", "2", "3", "4", "5")}, Labels: w.labels(), Local: w.chance(50)}
	for range w.IntN(4) { // few addresses, so that they are often shared and moved
		e.Addrs = append(e.Addrs, w.addr())
	}
	for _, name := range []string{"http", "dns"} {
		if w.chance(60) {
			e.Ports = append(e.Ports, NamedPort{name, pick(w, TCP, UDP), pick(w, uint16(80), 81, 5000)})
		}
	}
	return e
}

// change changes one thing in the world and tells the compiler.
func (w *world) change(c *Compiler) {
	switch w.IntN(8) {
	case 0:
		name, labels := w.namespace(), w.labels()
		w.Namespaces[name] = labels
		c.SetNamespace(name, labels)
	case 1:
		name := w.namespace()
		delete(w.Namespaces, name)
		c.DeleteNamespace(name)
	case 2, 3:
		e := w.endpoint()
		w.Endpoints[e.Key] = e
		c.SetEndpoint(e)
	case 4:
		key := w.endpoint().Key
		delete(w.Endpoints, key)
		c.DeleteEndpoint(key)
	case 5, 6:
		p := w.policy()
		w.Policies[p.Key] = p
		c.SetPolicy(p)
	case 7:
		key := w.policy().Key
		delete(w.Policies, key)
		c.DeletePolicy(key)
	}
}

// tell tells a compiler everything in random order, some of it twice, flushing
// in between.
func (w *world) tell(c *Compiler, flush func()) {
	var events []func()
	for _, name := range slices.Sorted(maps.Keys(w.Namespaces)) {
		events = append(events, func() { c.SetNamespace(name, w.Namespaces[name]) })
	}
	for _, key := range sortedKeys(w.Endpoints) {
		events = append(events, func() { c.SetEndpoint(w.Endpoints[key]) })
	}
	for _, key := range sortedKeys(w.Policies) {
		events = append(events, func() { c.SetPolicy(w.Policies[key]) })
	}
	for _, e := range events {
		if w.chance(30) {
			events = append(events, e)
		}
	}
	w.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	for _, e := range events {
		e()
		if w.chance(10) {
			flush()
		}
	}
	flush()
}

func equalPrograms(a, b *program) string {
	return gocmp.Diff(a, b, gocmp.AllowUnexported(program{}, programSet{}), gocmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		gocmp.Comparer(func(a, b netipx.IPRange) bool { return a == b }))
}

// connection is a random connection of a local pod, mostly with another pod, over
// a family that the pod has an address of.
func (w *world) connection() (Connection, bool) {
	keys := sortedKeys(w.Endpoints)
	if len(keys) == 0 {
		return Connection{}, false
	}
	key := pick(w, keys...)
	e := w.Endpoints[key]
	if !e.Local || len(e.Addrs) == 0 {
		return Connection{}, false
	}
	c := Connection{Direction: Direction(w.IntN(2)), Pod: key, Protocol: pick(w, TCP, TCP, UDP, SCTP, 1), Peer: w.addr()}
	if other := w.Endpoints[pick(w, keys...)]; len(other.Addrs) > 0 && w.chance(70) {
		c.Peer = pick(w, other.Addrs...)
	}
	if FamilyOf(c.Peer) != FamilyOf(pick(w, e.Addrs...)) || e.has(c.Peer) {
		return Connection{}, false
	}
	if c.Protocol != 1 {
		c.Port = pick(w, uint16(0), 1, 79, 80, 80, 81, 81, 82, 83, 5000, 65535)
	}
	return c, true
}

func sortedKeys[V any](m map[api.Key]V) []api.Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b api.Key) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

// A case is one connection of a pod. Random worlds change step by step, by one
// change to eight; after each step the compiled form gives the verdicts of
// Evaluate on up to ten connections. After each tenth step it is the same as if
// it had been compiled from nothing in another order, and when a world is taken
// back, nothing is left.
func TestCompilerAgreesWithEvaluate(t *testing.T) {
	const steps, connections = 30, 10
	first := cmp.Or(*seed, rand.Uint64())
	done, allowed, named := 0, 0, 0
	for world := uint64(0); done < *cases; world++ {
		seed := first + world
		w := newWorld(seed)
		c, prog := NewCompiler(), newProgram()
		for step := 0; step < steps && done < *cases; step++ {
			for range 1 + w.IntN(8) {
				w.change(c)
			}
			if err := prog.apply(c.Flush()); err != nil {
				t.Fatalf("-seed %d, step %d: %v", seed, step, err)
			}
			for range connections {
				conn, ok := w.connection()
				if !ok {
					continue
				}
				done++
				want := Evaluate(w.State, conn)
				if want.Allowed {
					allowed++
				}
				if want.Rule >= 0 {
					named++
				}
				if got := prog.allows(conn.Direction, conn.Pod, conn.Peer, conn.Protocol, conn.Port); got != want.Allowed {
					t.Fatalf("-seed %d, step %d: %+v: compiled form allows: %t; evaluator: %s", seed, step, conn, got, want.Reason)
				}
			}
			if step%10 == 9 {
				compiledAnew(t, w, prog, fmt.Sprintf("-seed %d, step %d", seed, step))
			}
		}
		empty(t, w, c, prog, seed)
	}
	t.Logf("%d connections, %d of them allowed, %d by a rule; -seed %d", done, allowed, named, first)
	if done >= 1000 && (allowed < done/5 || done-allowed < done/5 || named < done/20) {
		t.Error("the worlds decide too often the same")
	}
}

// compiledAnew tells everything to another compiler, which must come to the same.
func compiledAnew(t *testing.T, w *world, prog *program, where string) {
	t.Helper()
	c, other := NewCompiler(), newProgram()
	w.tell(c, func() {
		if err := other.apply(c.Flush()); err != nil {
			t.Fatalf("%s: compiled anew: %v", where, err)
		}
	})
	if diff := equalPrograms(prog, other); diff != "" {
		t.Fatalf("%s: the compiled form depends on its history (-this +from nothing):\n%s", where, diff)
	}
}

// empty deletes everything, which must leave nothing behind.
func empty(t *testing.T, w *world, c *Compiler, prog *program, seed uint64) {
	t.Helper()
	for key := range w.Endpoints {
		c.DeleteEndpoint(key)
	}
	for key := range w.Policies {
		c.DeletePolicy(key)
	}
	for name := range w.Namespaces {
		c.DeleteNamespace(name)
	}
	if err := prog.apply(c.Flush()); err != nil {
		t.Fatalf("-seed %d: at the end: %v", seed, err)
	}
	left := map[string]int{
		"program's endpoints": len(prog.endpoints), "program's groups": len(prog.groups), "program's sets": len(prog.sets),
		"groups": len(c.groups), "sets": len(c.sets), "unions": len(c.unions), "holders": len(c.holders), "shared": len(c.shared), "locals": len(c.locals), "policies": len(c.policies),
		"identities": len(c.peers.identities) + len(c.subjects.identities), "labels": len(c.peers.byLabel) + len(c.subjects.byLabel),
		"selectors": len(c.peers.selectors) + len(c.subjects.selectors), "scopes": len(c.peers.scopes) + len(c.subjects.scopes) + len(c.peers.wide),
		"namespaces": len(c.peers.namespaces) + len(c.subjects.namespaces), "addresses": c.localAddrs[IPv4] + c.localAddrs[IPv6],
	}
	for what, n := range left {
		if n != 0 {
			t.Fatalf("-seed %d: all was deleted, but %d %s are left", seed, n, what)
		}
	}
}
