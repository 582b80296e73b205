package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/cni/client"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

const (
	// podsAtOnce are attached and detached at the same time on a node.
	podsAtOnce = 3
	// An agent is killed whenever this many pods have come and gone, GC called,
	// and a runtime forgets one pod of so many.
	killEvery, collectEvery, forgetEvery = 12, 30, 15
	// slowest is the time within which twill-cni is killed, if it is: ADD and DEL
	// take less.
	slowest = 15 * time.Millisecond
	// startTime is about what an agent needs until it is ready.
	startTime = 300 * time.Millisecond
	// gonePatience is how long DEL may be tried, through starts of an agent.
	gonePatience = time.Minute
)

// TestPodsComeAndGo attaches and detaches pods as container runtimes do, while
// agents and twill-cni are killed at random moments. No two pods ever have the
// same address, each pod that is attached can be reached, and at the end nothing is
// left of any of them.
func TestPodsComeAndGo(t *testing.T) {
	first := cmp.Or(*seed, rand.Uint64())
	t.Logf("repeat with -seed %d -cycles %d", first, *cycles)
	needPrograms(t)
	ch := newChurn(t)
	defer ch.endAll()
	before := map[string][]string{}
	for _, n := range ch.nodes {
		before[n.node] = ch.has(t, n)
	}
	var wait sync.WaitGroup
	for i, n := range ch.nodes {
		for j := range podsAtOnce {
			random := rand.New(rand.NewPCG(first, uint64(i*podsAtOnce+j)))
			wait.Go(func() { ch.live(t, n, random, fmt.Sprintf("%d-%d", i, j)) })
		}
	}
	wait.Wait()
	t.Logf("%d pods: %d attached, %d failed; agents killed %d times; twill-cni killed %d times; %d pods forgotten, %d times GC",
		ch.done.Load(), ch.attached.Load(), ch.failed.Load(), ch.agents.Load(), ch.killed.Load(), ch.forgotten.Load(), ch.collected.Load())
	if ch.attached.Load() < int64(*cycles/4) {
		t.Errorf("only %d pods of %d were attached: that shows too little", ch.attached.Load(), *cycles)
	}
	for _, n := range ch.nodes {
		if err := ch.collect(n, rand.New(rand.NewPCG(first, 0))); err != nil {
			t.Error(err)
		}
	}
	ch.nothingLeft(t, before)
	// What the agents only remember would be gone, what they wrote down is not.
	for _, n := range ch.nodes {
		ch.restart(t, n)
	}
	ch.nothingLeft(t, before)
	ch.answersAreKept(t, ch.nodes[0])
	ch.nothingLeft(t, before)
}

// answersAreKept kills an agent at once when it has answered DEL, when it can't
// have done much of it. The sandboxes stay: with these, their devices would go by
// themselves.
func (ch *churn) answersAreKept(t *testing.T, n *churnNode) {
	t.Helper()
	const rounds, atOnce = 6, 4
	for round := range rounds {
		agent := ch.agentPID(t, n)
		var answered atomic.Int64
		var wait sync.WaitGroup
		for i := range atOnce {
			name := fmt.Sprintf("kept-%d-%d", round, i)
			s, err := newSandbox(name, name)
			if err != nil {
				t.Fatal(err)
			}
			ch.open[s] = true
			if _, err := n.add(s, 0, nil); err != nil {
				t.Fatal(err)
			}
			wait.Go(func() {
				// Not by twill-cni, whose end takes as long as what is answered.
				reply, err := client.Call(n.socket, s.environment("DEL"), []byte(`{"cniVersion":"1.1.0","name":"runtime","type":"twill-cni"}`))
				if err != nil || reply.Status != 0 {
					t.Errorf("DEL: %v, %s", err, reply.Output)
				}
				if answered.Add(1) == atOnce {
					_ = syscall.Kill(agent, syscall.SIGKILL)
				}
			})
		}
		wait.Wait()
		testlab.Eventually(t, patience, func() error {
			return ch.Control(lab.ControlRequest{Node: n.node, Action: lab.Start})
		})
	}
}

// restart kills an agent and starts it again.
func (ch *churn) restart(t *testing.T, n *churnNode) {
	t.Helper()
	for _, action := range []lab.Action{lab.Kill, lab.Start} {
		if err := ch.Control(lab.ControlRequest{Node: n.node, Action: action}); err != nil {
			t.Fatal(err)
		}
	}
}

// churn is pods that come and go on two nodes.
type churn struct {
	*cluster
	nodes []*churnNode

	done, attached, failed, killed, forgotten, agents, collected atomic.Int64

	mu      sync.Mutex
	open    map[*sandbox]bool       // those of some pods stay although they are detached
	holders map[netip.Addr]*sandbox // pods that live
}

type churnNode struct {
	*containerRuntime
	// commands are not called while GC is (CNI specification, §4 "Lifecycle &
	// Ordering"): it holds the lock alone.
	commands sync.RWMutex
	control  sync.Mutex // who kills or starts the agent

	mu    sync.Mutex
	known []attachmentID
}

// newChurn has a pod on each node that stays, so that all that nodes have of each
// other is there from the beginning, and policies that deny all that pods send.
func newChurn(t *testing.T) *churn {
	t.Helper()
	port := []lab.Port{{Port: greetPort}}
	ch := &churn{cluster: newCluster(t, []pod{
		{"default/m", "master", nil, port}, {"default/a", "node01", nil, port}, {"default/b", "node02", nil, port},
	}), open: map[*sandbox]bool{}, holders: map[netip.Addr]*sandbox{}}
	ch.expect(t, "a b m -> a:80 b:80 m:80", "")
	ch.apply(t, denyIngress+denyEgress)
	ch.expect(t, "", "a b -> m:80\na m -> b:80\nb m -> a:80")
	for _, node := range []string{"node01", "node02"} {
		ch.nodes = append(ch.nodes, &churnNode{containerRuntime: ch.newRuntime(node)})
	}
	return ch
}

// live makes one pod after the other until there were enough.
func (ch *churn) live(t *testing.T, n *churnNode, random *rand.Rand, name string) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for i := 0; !t.Failed(); i++ {
		done := ch.done.Add(1)
		if done > int64(*cycles) {
			ch.done.Add(-1)
			return
		}
		var err error
		kill := func() {}
		switch {
		case done%killEvery == 0:
			after, again := moment(random, slowest), moment(random, 4*startTime)
			kill = func() {
				wait.Go(func() {
					if err := ch.killAgent(n, after, again); err != nil {
						t.Error(err)
					}
				})
			}
		case done%collectEvery == 1:
			err = ch.collect(n, random)
		}
		name := fmt.Sprintf("churn-%s-%d", name, i)
		if err := errors.Join(err, ch.cycle(n, random, name, kill)); err != nil {
			t.Errorf("pod %s on %s: %v\n%s", name, n.node, err, ch.logOf(n))
		}
	}
}

// logOf is the end of the log of a node's agent.
func (ch *churn) logOf(n *churnNode) string {
	text, err := os.ReadFile(lab.LogPath(ch.Config.Name, "agent-"+n.node))
	if err != nil {
		return err.Error()
	}
	const enough = 400_000
	return string(text[max(0, len(text)-enough):])
}

func moment(random *rand.Rand, within time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(within)))
}

// killAgent kills the agent and starts it; sometimes it is killed again while it
// starts.
func (ch *churn) killAgent(n *churnNode, after, again time.Duration) error {
	if !n.control.TryLock() {
		return nil // somebody does
	}
	defer n.control.Unlock()
	kill, start := lab.ControlRequest{Node: n.node, Action: lab.Kill}, lab.ControlRequest{Node: n.node, Action: lab.Start}
	<-time.After(after)
	if err := ch.Control(kill); err != nil {
		return err
	}
	ch.agents.Add(1)
	if again < startTime {
		started := make(chan error, 1)
		go func() { started <- ch.Control(start) }()
		<-time.After(again)
		killed := ch.Control(kill)
		if err := <-started; killed != nil && err == nil {
			return nil // it was killed too early, and runs
		}
		ch.agents.Add(1)
	}
	return ch.Control(start)
}

// collect calls GC. All attachments are said to be valid, even those of pods that
// are gone, but those that were forgotten: it must not hide what DEL leaves.
func (ch *churn) collect(n *churnNode, random *rand.Rand) error {
	n.commands.Lock()
	defer n.commands.Unlock()
	ch.collected.Add(1)
	n.mu.Lock()
	known := slices.Clone(n.known)
	n.mu.Unlock()
	return insist(func() error {
		_, err := n.call("GC", nil, ch.killTime(random), map[string]any{"cni.dev/valid-attachments": known})
		return err
	})
}

// insist tries again what a runtime does not give up.
func insist(f func() error) error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(gonePatience); ; <-again.C {
		if err := f(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// cycle is the life of a sandbox. Mostly it is attached once. kill is called
// before or after it is attached or detached.
func (ch *churn) cycle(n *churnNode, random *rand.Rand, name string, kill func()) error {
	s, err := newSandbox(fmt.Sprintf("%016x%016x", random.Uint64(), random.Uint64()), name)
	if err != nil {
		return err
	}
	ch.mu.Lock()
	ch.open[s] = true
	ch.mu.Unlock()
	lingers := random.IntN(4) == 0
	defer func() {
		if !lingers {
			ch.end(s)
		}
	}()
	if err := s.greet(); err != nil {
		return err
	}
	moments := []func(){func() {}, func() {}, func() {}}
	moments[random.IntN(len(moments))] = kill
	for {
		moments[0]()
		addrs, err := ch.attach(n, random, s)
		if err != nil {
			return err
		}
		if addrs != nil && random.IntN(forgetEvery) == 0 {
			ch.forget(n, s, addrs)
			return nil
		}
		ch.dies(addrs)
		ends := !lingers && random.IntN(4) == 0
		if ends {
			s.close() // before it is detached
		}
		moments[1]()
		if err := ch.detach(n, random, s); err != nil {
			return err
		}
		moments[2]()
		if ends || random.IntN(5) > 0 {
			return nil
		}
	}
}

// endAll ends the sandboxes that are still there.
func (ch *churn) endAll() {
	for s := range ch.open {
		s.close()
	}
}

// end ends a sandbox.
func (ch *churn) end(s *sandbox) {
	s.close()
	ch.mu.Lock()
	delete(ch.open, s)
	ch.mu.Unlock()
}

// killTime is after how long twill-cni is killed; zero: never.
func (ch *churn) killTime(random *rand.Rand) time.Duration {
	if random.IntN(5) > 0 {
		return 0
	}
	ch.killed.Add(1)
	return 1 + moment(random, slowest)
}

// attach tries once. That it fails is no error; when it does not the pod must be
// what was said.
func (ch *churn) attach(n *churnNode, random *rand.Rand, s *sandbox) ([]netip.Addr, error) {
	killAfter := ch.killTime(random)
	n.mu.Lock()
	n.known = append(n.known, attachmentID{s.id, "eth0"})
	n.mu.Unlock()
	n.commands.RLock()
	addrs, err := n.add(s, killAfter, map[string]string{"app": "churn"})
	n.commands.RUnlock()
	if err != nil {
		ch.failed.Add(1)
		return nil, nil
	}
	ch.attached.Add(1)
	return addrs, ch.lives(n, s, addrs)
}

// lives notes that a pod has addresses, which nobody else may have: no pod that
// lives, and no device of one that is going.
func (ch *churn) lives(n *churnNode, s *sandbox, addrs []netip.Addr) error {
	if len(addrs) != 2 {
		return fmt.Errorf("it has the addresses %v, want one of each family", addrs)
	}
	var others []*sandbox
	ch.mu.Lock()
	for other := range ch.open {
		others = append(others, other)
	}
	var twice error
	for _, a := range addrs {
		if other := ch.holders[a]; other != nil {
			twice = errors.Join(twice, fmt.Errorf("%s was given to it and to %s, which lives", a, other.name))
		}
		ch.holders[a] = s
	}
	ch.mu.Unlock()
	if twice != nil {
		return twice
	}
	for _, a := range addrs {
		for _, other := range others {
			has, err := other.has(a)
			if err != nil || has != (other == s) {
				return fmt.Errorf("whether %s has the address %s of %s: %t, %v", other.name, a, s.name, has, err)
			}
		}
		if who, err := n.greeting(a); err != nil || who != s.id {
			return fmt.Errorf("at %s answers %q, %v; want %s", a, who, err, s.id)
		}
	}
	return nil
}

// dies notes that a pod is about to give up its addresses.
func (ch *churn) dies(addrs []netip.Addr) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	for _, a := range addrs {
		delete(ch.holders, a)
	}
}

// forget is what a runtime does that has lost its own state: the pod ends, and
// nobody calls DEL.
func (ch *churn) forget(n *churnNode, s *sandbox, addrs []netip.Addr) {
	ch.dies(addrs)
	s.close()
	ch.forgotten.Add(1)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = slices.DeleteFunc(n.known, func(id attachmentID) bool { return id.ContainerID == s.id })
}

func (ch *churn) detach(n *churnNode, random *rand.Rand, s *sandbox) error {
	return insist(func() error {
		n.commands.RLock()
		defer n.commands.RUnlock()
		_, err := n.call("DEL", s, ch.killTime(random), nil)
		return err
	})
}

// has is what a node has: in its kernel, in the store, and what its agent holds
// of namespaces.
func (ch *churn) has(t *testing.T, n *churnNode) []string {
	t.Helper()
	has := ch.state(t, n.node)
	links, err := ch.run("node/"+n.node, "ip", "-o", "link")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(links) {
		has = append(has, "link "+strings.Fields(line)[1])
	}
	st, err := ch.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	list, err := st.List(t.Context(), api.WorkloadEndpointKind, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, obj := range list.Items {
		if w := obj.(*api.WorkloadEndpoint); w.Spec.Node == n.node {
			has = append(has, "endpoint "+w.Name)
		}
	}
	return append(has, ch.foreignNamespaces(t, n)...)
}

// foreignNamespaces are the network namespaces that the agent of a node keeps
// alive, beside the node's own.
func (ch *churn) foreignNamespaces(t *testing.T, n *churnNode) (kept []string) {
	t.Helper()
	own, err := os.Readlink(filepath.Join(n.task, "ns/net"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"/proc/%d/fd/*", "/proc/%d/task/*/ns/net"} {
		paths, err := filepath.Glob(fmt.Sprintf(pattern, ch.agentPID(t, n)))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "net:") && to != own {
				kept = append(kept, "namespace of a pod, "+path)
			}
		}
	}
	return kept
}

func (ch *churn) agentPID(t *testing.T, n *churnNode) int {
	t.Helper()
	status, err := ch.Status()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(status.Nodes, func(s lab.NodeStatus) bool { return s.Name == n.node })
	return status.Nodes[i].Agent.PID
}

// nothingLeft waits until the nodes have what they had before.
func (ch *churn) nothingLeft(t *testing.T, before map[string][]string) {
	t.Helper()
	for _, n := range ch.nodes {
		testlab.Eventually(t, gonePatience, func() error {
			if diff := gocmp.Diff(before[n.node], ch.has(t, n)); diff != "" {
				return fmt.Errorf("%s has not what it had (-before +now):\n%s\n%s", n.node, diff, ch.logOf(n))
			}
			return nil
		})
	}
}
