package plan

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/twill-net/twill/service"
)

// affinity identifies the memory of one Service port's clients in one family. All
// front ends of the port share it, so a client gets the same endpoint by whichever
// of the Service's addresses it connects. No other port can fill it: the kernel
// bounds each map (see Set.Dynamic). The zero value is no affinity.
type affinity struct {
	port    string        // namespace/name:port/protocol
	timeout time.Duration // since the client's last connection
}

func (s *servicePlanner) affinityOf(o owner, protocol uint8, f *service.Frontend) affinity {
	if f.Affinity == 0 {
		return affinity{}
	}
	return affinity{fmt.Sprintf("%s:%s/%s", s.title(o), f.PortName, protoName(protocol)), f.Affinity}
}

// mapName is the map from client to endpoint identifier. It does not depend on the
// timeout: clients stay when that is changed.
func (a affinity) mapName(is4 bool) string {
	return fmt.Sprintf("affinity%s-%s", families[familyOf(is4)].suffix, a.hash())
}

// hash shortens the port to 64 bits, so that nobody can look for a Service whose
// name collides with another's.
func (a affinity) hash() string {
	sum := sha256.Sum256([]byte(a.port))
	return fmt.Sprintf("%x", sum[:8])
}

// balancer is a chain or map that front ends share. It is in the plan while some
// front end needs it.
type balancer struct {
	kind       balancerKind
	is4, local bool // local: over the lists of policy Local
	list
}

type balancerKind int

const (
	balanceChain    balancerKind = iota // translates to an endpoint of a list
	balanceDraw                         // the chain that marks with a random endpoint's identifier
	balanceRemember                     // the map from client to endpoint identifier
	balanceRestore                      // the chains that put back the mark
)

// balancerUse counts the front ends that need a balancer.
type balancerUse struct {
	uses    int
	verdict string // that leads to the chain
}

// balancers lists what a list of backends needs, the chain first.
func (l listKey) balancers(of list) []balancer {
	switch {
	case of.n == 0:
		return nil
	case of.affinity == affinity{}:
		return []balancer{{balanceChain, l.is4, l.local, of}}
	}
	return []balancer{
		{balanceChain, l.is4, l.local, of},
		{balanceDraw, l.is4, l.local, list{n: of.n}},
		{balanceRemember, l.is4, false, list{affinity: affinity{port: of.affinity.port}}},
		{kind: balanceRestore},
	}
}

func (s *servicePlanner) hold(b balancer) {
	use := s.balancers[b]
	if use == nil {
		use = &balancerUse{}
		s.balancers[b] = use
		switch b.kind {
		case balanceChain:
			use.verdict = string(Goto(b.name()))
			s.plan.Chains.Set(b.name(), b.chain())
		case balanceDraw:
			s.plan.Chains.Set(b.name(), b.chain())
		case balanceRemember:
			s.plan.Sets.Set(b.affinity.mapName(b.is4), Set{Key: []Type{families[familyOf(b.is4)].addr}, Value: []Type{Mark},
				Dynamic: true, Timeout: defaultAffinity, Comment: b.affinity.port})
		case balanceRestore:
			planRestoreMark(s.plan, true)
		}
	}
	use.uses++
}

func (s *servicePlanner) release(b balancer) {
	use := s.balancers[b]
	if use.uses--; use.uses > 0 {
		return
	}
	delete(s.balancers, b)
	switch b.kind {
	case balanceChain, balanceDraw:
		s.plan.Chains.Delete(b.name())
	case balanceRemember:
		s.plan.Sets.Delete(b.affinity.mapName(b.is4))
	case balanceRestore:
		planRestoreMark(s.plan, false)
	}
}

// defaultAffinity is for entries without a timeout of their own; the rules
// always give one.
const defaultAffinity = 3 * time.Hour

func (b balancer) name() string {
	switch {
	case b.kind == balanceDraw:
		return fmt.Sprintf("%s-%d", b.prefix("draw"), b.n)
	case b.affinity == affinity{}:
		return fmt.Sprintf("%s-%d", b.prefix("lb"), b.n)
	}
	return fmt.Sprintf("%s-%s-%d-%ds", b.prefix("affine"), b.affinity.hash(), b.n, int(b.affinity.timeout.Seconds()))
}

func (b balancer) prefix(name string) string {
	if b.local {
		name += "-local"
	}
	return name + families[familyOf(b.is4)].suffix
}

func (b balancer) chain() Chain {
	f := families[familyOf(b.is4)]
	l := serviceNamesFor(f.number).all
	if b.local {
		l = serviceNamesFor(f.number).local
	}
	random := Concat{f.dst, L4Proto, DstPort, RandomMod(b.n)}
	switch {
	case b.kind == balanceDraw:
		return Chain{Rules: []Rule{R(SetMark{random, l.slots})}}
	case b.affinity == affinity{}:
		return Chain{Rules: []Rule{R(DNAT{f.number, random, l.backends})}}
	}
	// The maps that all Services are in are looked up in chains that all share: for
	// each chain that uses a map the kernel visits all of its elements
	// (nf_tables_bind_set).
	client, known := Concat{f.src}, b.affinity.mapName(b.is4)
	draw := Jump(balancer{balanceDraw, b.is4, b.local, list{n: b.n}}.name())
	remember := R(UpdateMap{client, known, b.affinity.timeout})
	translate := R(Jump(b.prefix("translate")))
	return Chain{Rules: []Rule{
		R(Jump(chainSaveMark)),
		R(draw).WithComment("the endpoint, if the client has none yet"),
		R(SetMark{client, known}).WithComment(b.affinity.port),
		// This rule ends while the map is full: the client is not remembered.
		remember, translate,
		// Here the endpoint that was remembered is no longer in the list. An
		// update would leave the entry's data as it is.
		R(DeleteFromMap{client, known}, draw).WithComment("the endpoint is gone: choose again"),
		remember, translate,
		R(Jump(chainRestoreMark)),
	}}
}

// planTranslate asks for the chains that translate to the endpoint that the mark
// names.
func planTranslate(p *Plan) {
	for _, f := range families {
		n := serviceNamesFor(f.number)
		marked := Concat{f.dst, L4Proto, DstPort, PacketMark}
		p.Chains.Set("translate"+f.suffix, Chain{Rules: []Rule{R(DNAT{f.number, marked, n.all.backends})}})
		p.Chains.Set("translate-local"+f.suffix, Chain{Rules: []Rule{R(DNAT{f.number, marked, n.local.backends})}})
	}
}

// familyOf is the index of a family in families.
func familyOf(is4 bool) int {
	if is4 {
		return 0
	}
	return 1
}
