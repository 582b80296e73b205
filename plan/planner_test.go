package plan

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/test/golden"
)

// event is one thing that a planner is told.
type event struct {
	put    api.Object
	delete *api.Kind
	key    api.Key
	local  *Local
	gone   string // host interface
}

func (e event) tell(pl *Planner) {
	switch {
	case e.put != nil:
		pl.Put(e.put)
	case e.delete != nil:
		pl.Delete(e.delete, e.key)
	case e.local != nil:
		pl.SetLocal(*e.local)
	default:
		pl.DeleteLocal(e.gone)
	}
}

// scene is the classic exercise as master sees it: objects and local pods.
func scene(t testing.TB) []event {
	t.Helper()
	manifest, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := api.Decode(manifest, "default")
	if err != nil {
		t.Fatal(err)
	}
	var events []event
	for _, d := range decoded {
		events = append(events, event{put: d.Object})
		w, ok := d.Object.(*api.WorkloadEndpoint)
		if !ok || w.Spec.Node != "master" {
			continue
		}
		l := Local{
			Pod: api.KeyOf(w), ContainerID: w.Spec.ContainerID, HostInterface: w.Spec.InterfaceName,
			MAC: MAC{2, 0, 0, 0, 0, byte(len(events))}, Labels: w.Labels, Ports: w.Spec.Ports,
		}
		for _, text := range w.Spec.IPNetworks {
			l.Addrs = append(l.Addrs, netip.MustParsePrefix(text).Addr())
		}
		events = append(events, event{local: &l})
	}
	return events
}

func newScenePlanner() *Planner {
	pl := NewPlanner("master")
	pl.SetUnderlay(fabric.Underlay{Link: "eth0", MTU: 1500, Prefixes: []netip.Prefix{
		netip.MustParsePrefix("172.16.10.10/24"), netip.MustParsePrefix("fd00:172:16:10::10/64"),
	}})
	return pl
}

// TestPlanOfTheClassicExercise shows a whole plan.
func TestPlanOfTheClassicExercise(t *testing.T) {
	pl := newScenePlanner()
	for _, e := range scene(t) {
		e.tell(pl)
	}
	golden.Check(t, "testdata/cluster.golden", pl.Flush().String())
	if problems := pl.Problems(); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
}

func (e event) undo() event {
	if e.local != nil {
		return event{gone: e.local.HostInterface}
	}
	return event{delete: api.KindOf(e.put), key: api.KeyOf(e.put)}
}

// TestUndoneIsGone takes everything back: what remains is what every node has.
func TestUndoneIsGone(t *testing.T) {
	pl := newScenePlanner()
	want := pl.Flush().String()
	events := scene(t)
	for _, e := range events {
		e.tell(pl)
	}
	pl.Flush()
	for _, e := range events {
		e.undo().tell(pl)
	}
	if diff := cmp.Diff(want, pl.Flush().String()); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
}

// TestAnEventDirtiesOnlyItsOwn: the cost of an event follows what it changes.
func TestAnEventDirtiesOnlyItsOwn(t *testing.T) {
	pl := newScenePlanner()
	for _, e := range scene(t) {
		e.tell(pl)
	}
	p := pl.Flush()
	settle(p)
	for _, e := range scene(t) {
		e.tell(pl) // nothing new
	}
	pl.Flush()
	if n := dirty(p); n != 0 {
		t.Errorf("%d keys are dirty after being told the same again", n)
	}
	block := api.IPAMBlockKind.New().(*api.IPAMBlock)
	block.Name, block.Spec.CIDR, block.Spec.Affinity = "10-244-2-0-26", "10.244.2.0/26", api.AffinityOf("node01")
	pl.Put(block)
	pl.Flush()
	if n := dirty(p); n != 1 || !p.Routes.IsDirty(netip.MustParsePrefix("10.244.2.0/26")) {
		t.Errorf("%d keys are dirty after a new block of a peer, want its route", n)
	}
}

// settle marks everything as being in the kernel.
func settle(p *Plan) {
	clear(p.Sysctls.dirty)
	clear(p.Links.dirty)
	clear(p.Addresses.dirty)
	clear(p.Neighbours.dirty)
	clear(p.FDB.dirty)
	clear(p.Routes.dirty)
	clear(p.Chains.dirty)
	clear(p.Sets.dirty)
	clear(p.Elements.dirty)
	clear(p.UDPFrontends.dirty)
}

func dirty(p *Plan) int {
	return p.Sysctls.DirtyLen() + p.Links.DirtyLen() + p.Addresses.DirtyLen() + p.Neighbours.DirtyLen() + p.FDB.DirtyLen() +
		p.Routes.DirtyLen() + p.Chains.DirtyLen() + p.Sets.DirtyLen() + p.Elements.DirtyLen() + p.UDPFrontends.DirtyLen()
}

// TestFabricChangesInPlace: a route changes its next hop, it never goes.
func TestFabricChangesInPlace(t *testing.T) {
	pl := newScenePlanner()
	for _, e := range scene(t) {
		e.tell(pl)
	}
	prefix := netip.MustParsePrefix("10.244.1.0/26")
	r, _ := pl.Flush().Routes.Get(prefix)
	if r.Link != VXLANLink {
		t.Fatalf("%+v", r)
	}
	config := api.FabricConfigurationKind.New().(*api.FabricConfiguration)
	config.Name, config.Spec.Preference = api.FabricConfigurationName, []string{"host-gw", "vxlan"}
	pl.Put(config)
	p := pl.Flush()
	if r, ok := p.Routes.Get(prefix); !ok || r.Link != "eth0" || r.OnLink {
		t.Errorf("%+v, %v", r, ok)
	}
	if _, ok := p.Links.Get(VXLANLink); !ok {
		t.Error("the node no longer receives what peers may still send")
	}
}

// TestUnintelligibleObjectsAreNamed: what somebody wrote past the API counts as
// absent and is told.
func TestUnintelligibleObjectsAreNamed(t *testing.T) {
	pl := newScenePlanner()
	pool := api.IPPoolKind.New().(*api.IPPool)
	pool.Name, pool.Spec.CIDR = "broken", "10.244.0.0/33"
	pl.Put(pool)
	pl.Flush()
	problems := pl.Problems()
	if len(problems) != 1 || problems[0].Code != "ObjectInvalid" || problems[0].Subject != "IPPool broken" || !strings.Contains(problems[0].Detail, "10.244.0.0/33") {
		t.Errorf("%+v", problems)
	}
	pl.Delete(api.IPPoolKind, api.KeyOf(pool))
	if problems := pl.Problems(); len(problems) != 0 {
		t.Errorf("%+v", problems)
	}
}
