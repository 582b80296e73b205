package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

// leaseAgent is what of an agent of node01 renews its lease.
func leaseAgent(s store.Store, machine identity) *Agent {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	return &Agent{
		config: Config{NodeName: "node01"}, store: s, log: log, machine: machine, health: &health.Tracker{}, progress: newProgress(),
		publisher: newPublisher(s, "node01", log), planner: plan.NewPlanner("node01"),
		ipam: &ipam.Allocator{}, held: make(chan struct{}), sightings: sightings{}, contest: newContest(), work: make(chan func(), 1000),
	}
}

// start renews the lease until stop is called, which returns why it ended.
func (a *Agent) start(t *testing.T) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.renewLease(ctx) }()
	return func() error { cancel(); return <-ended }
}

func (a *Agent) holds() bool {
	select {
	case <-a.held:
		return true
	default:
		return false
	}
}

// TestOneNameOnTwoMachines: the second does nothing while the first lives, both say
// so, and it takes over when the first has been silent.
func TestOneNameOnTwoMachines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		after := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		first, second := leaseAgent(s, "a_boot1.1"), leaseAgent(s, "b_boot2.1")
		stop := first.start(t)
		after(time.Second)
		if !first.holds() {
			t.Fatal("the first does not begin")
		}
		defer second.start(t)()
		after(10 * leaseDuration)
		if second.holds() || !second.health.Has(health.NodeNameTaken) {
			t.Errorf("the second holds the lease %t, or does not report", second.holds())
		}
		if _, err := second.newPodMTU(); err == nil || !strings.Contains(err.Error(), "another machine has the name") {
			t.Errorf("the second answers ADD with %v", err)
		}
		if c := first.health.Conditions(); len(c) != 1 || c[0].Code != health.NodeNameTaken || !strings.Contains(c[0].Detail, "machine b (b_boot2.1)") {
			t.Errorf("the first reports %v", c)
		}

		// It restarts, under another host name: that is no conflict.
		if err := stop(); err != nil {
			t.Error(err)
		}
		again := leaseAgent(s, "renamed_boot1.1")
		stop = again.start(t)
		after(time.Second)
		if !again.holds() || second.holds() {
			t.Errorf("after a restart: the same machine holds %t, the other %t", again.holds(), second.holds())
		}

		if err := stop(); err != nil {
			t.Error(err)
		}
		after(leaseDuration - 2*time.Second)
		if second.holds() {
			t.Error("the second takes over before the lease has run out")
		}
		after(leaseDuration/3 + 3*time.Second)
		if !second.holds() || second.health.Has(health.NodeNameTaken) {
			t.Errorf("the second holds %t, reports %v after the first is gone", second.holds(), second.health.Conditions())
		}

		// The first comes back: now it is the one that waits.
		late := leaseAgent(s, "a_boot1.1")
		defer late.start(t)()
		after(10 * leaseDuration)
		if late.holds() {
			t.Error("both hold the lease")
		}
	})
}

// TestAnAgentThatLosesItsNameEnds, such as one that could not reach the store while
// another machine took over.
func TestAnAgentThatLosesItsNameEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		a := leaseAgent(s, "a_boot1.1")
		stop := a.start(t)
		time.Sleep(time.Second)
		got, err := s.Get(t.Context(), api.LeaseKind, api.Key{Namespace: api.LeaseNamespace, Name: api.LeaseName("node01")})
		if err != nil {
			t.Fatal(err)
		}
		lease, other := got.(*coordinationv1.Lease), "b_boot2.1"
		lease.Spec.HolderIdentity = &other
		if _, err := s.Update(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		time.Sleep(leaseDuration)
		if err := stop(); !errors.Is(err, errNameLost) || !strings.Contains(err.Error(), "b has taken it") {
			t.Errorf("it ended with %v", err)
		}
	})
}

// TestAReboot: the machine's own lease of an earlier boot that has run out is taken
// at once, and so is that of an agent before identities.
func TestAReboot(t *testing.T) {
	for _, c := range []struct {
		holder string
		age    time.Duration
		want   time.Duration
	}{
		{"a_boot0.1", time.Minute, 0},
		{"a_boot0.1", 5 * time.Second, leaseDuration},
		{"b_boot0.1", time.Minute, leaseDuration}, // the other machine's clock may be wrong
		{"node01", time.Second, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := memory.New()
			before := leaseAgent(s, identity(c.holder))
			if _, err := before.writeLease(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(c.age)
			a := leaseAgent(s, "a_boot1.1")
			defer a.start(t)()
			began := time.Now()
			<-a.held
			if took := time.Since(began); took < c.want || took > c.want+leaseDuration/3 {
				t.Errorf("%s, renewed %s ago: held after %s, want %s", c.holder, c.age, took, c.want)
			}
		})
	}
}

func TestMachineIdentity(t *testing.T) {
	a, err := thisMachine()
	b, _ := thisMachine()
	if err != nil || a != b || !a.same(b) || a.host() == "" || a.same("x_"+b[1:]) || a.same("node01") {
		t.Errorf("%q, %q, %v", a, b, err)
	}
}

// TestContest: of Nodes with one address a living one gets it, once those before it
// are silent; it is reported while it lasts.
func TestContest(t *testing.T) {
	node := func(name string, created int64) *corev1.Node {
		n := api.NodeKind.New().(*corev1.Node)
		n.Name, n.CreationTimestamp.Time = name, time.Unix(created, 0)
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
		return n
	}
	for name, c := range map[string]struct {
		holder string // of the older node's lease
		lives  bool
		within time.Duration // after which this node has the address; 0: never
	}{
		"an agent of this machine":  {"a_boot1.1", false, time.Second},
		"a silent agent":            {"b_boot2.1", false, leaseDuration + leaseDuration/3},
		"no agent":                  {"", false, time.Second},
		"a living agent of another": {"b_boot2.1", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := memory.New()
				a := leaseAgent(s, "a_boot1.1")
				a.underlay.found.Prefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				old := leaseAgent(s, identity(c.holder))
				old.config.NodeName = "old"
				if c.holder != "" {
					stop := old.start(t)
					time.Sleep(time.Second)
					if !c.lives {
						_ = stop()
					} else {
						defer stop()
					}
				}
				go a.settleContest(ctx)
				go func() {
					for f := range a.work {
						f()
					}
				}()
				defer close(a.work)
				loop := func(f func()) {
					done := make(chan struct{})
					a.work <- func() { f(); close(done) }
					<-done
				}
				loop(func() {
					for _, n := range []*corev1.Node{node("old", 1), node("node01", 2)} {
						a.planner.Put(n)
					}
					a.followContest()
				})
				time.Sleep(max(c.within, time.Second))
				if c.within == 0 {
					time.Sleep(10 * leaseDuration)
				}
				synctest.Wait()
				edited := node("node01", 2)
				a.publisher.edit(edited)
				claimed := !api.NodeAddressClaim(edited).IsZero()
				if claimed != (c.within > 0) || a.health.Has(health.NodeAddressTaken) != claimed {
					t.Errorf("claimed %t, reported %v, want %t", claimed, a.health.Conditions(), c.within > 0)
				}
				loop(func() {
					a.planner.Put(edited)
					a.followContest()
					if others, _ := a.planner.Contenders(); len(others) != 1 || others[0].Precedes == claimed {
						t.Errorf("contenders %v after the claim %t", others, claimed)
					}
					a.planner.Delete(api.NodeKind, api.Key{Name: "old"})
					a.followContest()
				})
				synctest.Wait()
				a.publisher.edit(edited)
				if !api.NodeAddressClaim(edited).IsZero() || a.health.Has(health.NodeAddressTaken) {
					t.Errorf("after the other node is gone: %v, %v", edited.Annotations, a.health.Conditions())
				}
			})
		})
	}
}
