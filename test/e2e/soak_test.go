package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
)

const (
	soakPods  = 40 // at most, of one round more
	soakPools = 3  // at most, with the one that stays
	// giveTime bounds how long an attachment is refused though addresses can be had:
	// the owners of empty blocks give them up meanwhile, also those of the old size of
	// a pool that was made again.
	giveTime = 20 * time.Second
	soakPool = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: %s}
spec: {cidr: %s, blockSize: %d, natOutgoing: true, disabled: %t}
`
	// spareAddresses is below what a node keeps free (ipam.Options.Ahead, twice) and a
	// block beyond.
	spareAddresses = 16 + 4
)

// soakRange holds all pools of the test; pool n is in 10.98.n.0/24.
const soakRange = "10.98.0.0/16"

// soaking is a cluster whose pods, pools and agents come and go in rounds. A round is
// some operations at the same time; between rounds nothing changes.
type soaking struct {
	*cluster
	*rand.Rand
	pools  map[string]poolState
	down   map[string]int // stopped agents, and for how many rounds
	pods   map[string]lab.PodStatus
	task   map[string]string // of pods
	serial int

	mu      sync.Mutex
	counts  map[string]int
	refused map[string]string // of this round: the node's last error that no address is left
	killed  map[string]bool   // of this round
}

type poolState struct {
	prefix   netip.Prefix
	bits     int
	disabled bool
}

// TestSoak has pods, pools, agents and blocks of addresses come and go at random. No
// address is given out twice, a pod is refused only when no address is left for its
// node, and at the end nothing is left of the pools that were deleted.
func TestSoak(t *testing.T) {
	first := cmp.Or(*seed, rand.Uint64())
	t.Logf("repeat with -seed %d -soak %s", first, *soak)
	c := newCluster(t, nil)
	s := &soaking{
		cluster: c, Rand: rand.New(rand.NewPCG(first, 0)), pools: map[string]poolState{}, down: map[string]int{},
		pods: map[string]lab.PodStatus{}, task: map[string]string{}, counts: map[string]int{},
	}
	c.apply(t, fmt.Sprintf(soakPool, "default-ipv4", c.Config.Pools[0], 26, true))
	s.setPool(t, "soak-0", poolState{prefix: netip.MustParsePrefix("10.98.0.0/27"), bits: 30})
	began, told := time.Now(), time.Now()
	for time.Since(began) < *soak && !t.Failed() {
		s.round(t)
		if time.Since(told) > time.Minute {
			told = time.Now()
			t.Logf("after %s: %v", time.Since(began).Round(time.Second), s.counts)
		}
	}
	t.Logf("after %s: %v", time.Since(began).Round(time.Second), s.counts)
	if t.Failed() {
		t.Log(s.describe(t))
		return
	}
	s.end(t)
}

// round starts some operations together, waits for them, and looks whether all that
// must hold does.
func (s *soaking) round(t *testing.T) {
	t.Helper()
	s.counts["rounds"]++
	s.refused, s.killed = map[string]string{}, map[string]bool{}
	for node, rounds := range s.down {
		if s.down[node]--; rounds <= 1 {
			s.control(t, node, lab.Start)
			delete(s.down, node)
		}
	}
	var wait sync.WaitGroup
	for _, op := range s.draw(t) {
		wait.Go(op)
	}
	wait.Wait()
	s.learn(t)
	for node, problem := range s.refused {
		s.judge(t, node, problem)
	}
	s.addressesAreRight(t)
	s.podsAreReached(t)
}

// draw chooses the operations of a round. All that is random is chosen here, so that a
// seed repeats it.
func (s *soaking) draw(t *testing.T) (ops []func()) {
	t.Helper()
	nodes := s.Config.NodeNames()
	if len(s.down) == 0 && s.IntN(20) == 0 {
		node := nodes[s.IntN(len(nodes))]
		s.down[node] = 1 + s.IntN(3)
		return []func(){func() { s.control(t, node, lab.Stop); s.count("agents stopped") }}
	}
	for range 1 + s.IntN(3) {
		node := nodes[s.IntN(len(nodes))]
		switch n := s.IntN(100); {
		case n < 60 && s.down[node] == 0 && len(s.pods) < soakPods:
			ops = append(ops, s.run(t, node, 1+s.IntN(4)))
		case n < 80:
			some := 1 + s.IntN(6)
			if s.IntN(8) == 0 {
				some = soakPods
			}
			ops = append(ops, s.remove(t, some))
		case n < 90 && s.down[node] == 0 && !s.killed[node]:
			s.killed[node] = true
			after := moment(s.Rand, startTime)
			ops = append(ops, func() {
				<-time.After(after)
				s.control(t, node, lab.Kill)
				s.control(t, node, lab.Start)
				s.count("agents killed")
			})
		case n >= 90:
			s.changePool(t)
		}
	}
	return ops
}

func (s *soaking) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

func (s *soaking) control(t *testing.T, node string, action lab.Action) {
	if err := s.Control(lab.ControlRequest{Node: node, Action: action}); err != nil {
		t.Errorf("%s the agent of %s: %v", action, node, err)
	}
}

// run attaches pods. It may fail where the agent is killed or no address is left.
func (s *soaking) run(t *testing.T, node string, pods int) func() {
	s.serial++
	serial := s.serial
	return func() {
		var wait sync.WaitGroup
		for i := range pods {
			wait.Go(func() {
				_, err := s.Run(lab.RunRequest{Namespace: "default", Name: fmt.Sprintf("soak-%d-%d", serial, i), Replicas: 1, Node: node, Idle: true, Labels: map[string]string{"app": "soak"}})
				s.mu.Lock()
				defer s.mu.Unlock()
				switch {
				case err == nil:
					s.counts["pods attached"]++
				case strings.Contains(err.Error(), "exhausted on"):
					s.refused[node] = err.Error()
				case s.killed[node]:
					s.counts["pods that failed with their agent"]++
				default:
					t.Errorf("pod on %s: %v", node, err)
				}
			})
		}
		wait.Wait()
	}
}

// remove detaches pods of nodes whose agents run.
func (s *soaking) remove(t *testing.T, pods int) func() {
	names := slices.Sorted(maps.Keys(s.pods))
	s.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	names = slices.DeleteFunc(names, func(name string) bool { return s.down[s.pods[name].Node] > 0 })
	names = names[:min(pods, len(names))]
	if len(names) == 0 {
		return func() {}
	}
	for _, name := range names {
		delete(s.pods, name)
	}
	return func() {
		if _, err := s.Remove(lab.RemoveRequest{Namespace: "default", Names: names}); err != nil {
			t.Errorf("remove %v: %v", names, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.counts["pods removed"] += len(names)
	}
}

// changePool adds a pool, disables one, or deletes one that is disabled and has no
// pods. The first stays.
func (s *soaking) changePool(t *testing.T) {
	t.Helper()
	name := fmt.Sprintf("soak-%d", 1+s.IntN(soakPools-1))
	p, isThere := s.pools[name]
	switch {
	case !isThere:
		base := netip.AddrFrom4([4]byte{10, 98, name[len(name)-1] - '0', 0})
		length := 28 + s.IntN(2)
		s.setPool(t, name, poolState{prefix: netip.PrefixFrom(base, length), bits: length + s.IntN(3)})
		s.counts["pools added"]++
	case !p.disabled:
		p.disabled = true
		s.setPool(t, name, p)
		s.counts["pools disabled"]++
	case len(s.podsIn(p.prefix)) == 0:
		if err := s.deletePool(t, name); err != nil {
			s.counts["pools that could not yet be deleted"]++ // the store hears later that pods are gone
		} else {
			s.counts["pools deleted"]++
		}
	}
}

// deletePool fails while the store knows a pod with an address of the pool.
func (s *soaking) deletePool(t *testing.T, name string) error {
	t.Helper()
	_, err := s.Twill(t.Context(), "", "delete", "ippool", name)
	if err == nil {
		delete(s.pools, name)
	} else if !strings.Contains(err.Error(), "a pod has its addresses") {
		t.Error(err)
	}
	return err
}

func (s *soaking) setPool(t *testing.T, name string, p poolState) {
	t.Helper()
	s.apply(t, fmt.Sprintf(soakPool, name, p.prefix, p.bits, p.disabled))
	s.pools[name] = p
}

func (s *soaking) podsIn(prefix netip.Prefix) (names []string) {
	for name, p := range s.pods {
		if prefix.Contains(p.Address()) {
			names = append(names, name)
		}
	}
	return names
}

// describe is what the pools, their blocks and the pods are, for people.
func (s *soaking) describe(t *testing.T) string {
	text := fmt.Sprintf("pools %v\nstopped %v\nblocks %v\n", s.pools, s.down, s.blocksIn(t, soakRange))
	for _, name := range slices.Sorted(maps.Keys(s.pods)) {
		text += fmt.Sprintf("%s on %s: %v\n", name, s.pods[name].Node, s.pods[name].Addresses)
	}
	return text
}
