package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
)

const (
	// startsAtOnce are the pods that start at the same time.
	startsAtOnce = 2
	// lifetime is how long a pod is there after its start.
	lifetime = 20 * time.Millisecond
	// killStarts: while one pod of so many starts the agent is killed.
	killStarts = 5
	// controls is where the numbers of starts begin for which all is allowed.
	controls = 1 << 32
)

// denyStarts lets nothing to or from the pods that are marked.
const denyStarts = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: starts}
spec:
  podSelector: {matchLabels: {starts: denied}}
  policyTypes: [Ingress, Egress]
`

// TestPodStartIsClosed starts pods to which and from which a policy allows
// nothing. A program in the pod and peers on its node and on another one send to
// each other without a pause, from before the pod has a device until it has none
// any more, also while the agent is killed. No packet may pass. Pods for which all
// is allowed, which have the same addresses before and after, show that packets
// pass where they may.
func TestPodStartIsClosed(t *testing.T) {
	c := newStartCluster(t)
	c.control(t)
	stop := c.makeNoise(t)
	var next atomic.Int64
	var wait sync.WaitGroup
	for worker := range startsAtOnce {
		wait.Go(func() {
			for i := next.Add(1); i <= int64(*starts) && !t.Failed(); i = next.Add(1) {
				if err := c.closed(uint64(i), worker); err != nil {
					t.Errorf("start %d: %v", i, err)
				}
			}
		})
	}
	wait.Wait()
	changes := stop()
	c.control(t)
	for _, peer := range c.peers {
		c.fromPeers.Add(peer.sent.Load())
	}
	t.Logf("%d pods started, after %d tries that failed; the agent was killed %d times meanwhile; pods sent %d packets and peers %d; %d changes of policies",
		*starts, c.failed.Load(), c.kills.Load(), c.fromPods.Load(), c.fromPeers.Load(), changes)
}

// startCluster is two peers, and a node on which pods start.
type startCluster struct {
	*cluster
	runtime *containerRuntime
	peers   []*flooder
	agent   sync.Mutex // who kills it

	failed, kills, fromPods, fromPeers atomic.Int64
	controls                           atomic.Uint64
}

func newStartCluster(t *testing.T) *startCluster {
	t.Helper()
	port := []lab.Port{{Port: 80}}
	c := &startCluster{cluster: newCluster(t, []pod{{"default/near", "node01", nil, port}, {"default/far", "node02", nil, port}})}
	c.expect(t, "near -> far:80\nfar -> near:80", "")
	c.apply(t, denyStarts)
	c.runtime = c.newRuntime("node01")
	for _, name := range []string{"default/near", "default/far"} {
		f, err := newFlooder(name, c.tasks[name], c.addresses[name])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.close)
		c.peers = append(c.peers, f)
	}
	return c
}

// slot are the addresses that a pod asks for: of the blocks of its node, and used
// by one worker alone.
func (c *startCluster) slot(worker int, start uint64) (addrs []netip.Addr) {
	const first, eachHas = 32, 2
	for _, a := range c.addresses["default/near"] {
		b := netip.PrefixFrom(a, a.BitLen()-blockHostBits).Masked().Addr().AsSlice()
		b[len(b)-1] += byte(first + eachHas*worker + int(start%eachHas))
		addr, _ := netip.AddrFromSlice(b)
		addrs = append(addrs, addr)
	}
	return addrs
}

// makeNoise changes policies that concern nobody, until stop is called.
func (c *startCluster) makeNoise(t *testing.T) (stop func() (changes int)) {
	t.Helper()
	st, err := c.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "noise"}}
	policy.Spec.PodSelector.MatchLabels = map[string]string{"nobody": "has it"}
	api.Default(policy)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		changes := 0
		for ctx.Err() == nil {
			made, err := st.Create(ctx, policy)
			if err == nil {
				err = st.Delete(ctx, api.NetworkPolicyKind, api.KeyOf(made), "")
			}
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				break
			}
			changes += 2
		}
		st.Close()
		done <- changes
	}()
	t.Cleanup(cancel)
	return func() int { cancel(); return <-done }
}

// begin makes a pod's namespaces, and has all send to each other.
func (c *startCluster) begin(start uint64, worker int) (*sandbox, floods, error) {
	name := fmt.Sprintf("start-%d-%d", worker, start)
	s, err := newSandbox(fmt.Sprintf("%s-%d", name, time.Now().UnixNano()), name)
	if err != nil {
		return nil, floods{}, err
	}
	f, err := newFlooder(name, s.space.Task(), c.slot(worker, start))
	if err != nil {
		s.close()
		return nil, floods{}, err
	}
	return s, flood(start, f, c.peers), nil
}

// end detaches a pod, and lets the others send until its device is gone.
func (c *startCluster) end(s *sandbox, f floods) error {
	err := insist(func() error { _, err := c.runtime.call("DEL", s, 0, nil); return err })
	if err == nil {
		err = insist(func() error {
			if has, err := s.has(f.pod.addrs[0]); has || err != nil {
				return fmt.Errorf("the pod still has its addresses (%w)", err)
			}
			return nil
		})
	}
	f.stop()
	f.pod.close()
	s.close()
	c.fromPods.Add(f.pod.sent.Load())
	return err
}

// closed starts a pod for which nothing is allowed.
func (c *startCluster) closed(start uint64, worker int) error {
	s, f, err := c.begin(start, worker)
	if err != nil {
		return err
	}
	killed := make(chan error, 1)
	if start%killStarts == 0 {
		go func() { killed <- c.killAgent(start) }()
	} else {
		killed <- nil
	}
	err = insist(func() error {
		_, err := c.runtime.add(s, 0, map[string]string{"starts": "denied"}, f.pod.addrs...)
		if err == nil {
			return nil
		}
		c.failed.Add(1)
		return errors.Join(err, insist(func() error { _, err := c.runtime.call("DEL", s, 0, nil); return err }))
	})
	<-time.After(lifetime)
	if err == nil {
		err = insist(func() error {
			if f.pod.sent.Load() == 0 {
				return errors.New("the pod could send nothing: that shows nothing")
			}
			return nil
		})
	}
	return errors.Join(err, <-killed, c.end(s, f), f.nonePassed())
}

// killAgent kills the agent of the node at some moment of a start, and starts it.
func (c *startCluster) killAgent(start uint64) error {
	c.agent.Lock()
	defer c.agent.Unlock()
	<-time.After(time.Duration(start%7) * time.Millisecond)
	c.kills.Add(1)
	if err := c.Control(lab.ControlRequest{Node: c.runtime.node, Action: lab.Kill}); err != nil {
		return err
	}
	return c.Control(lab.ControlRequest{Node: c.runtime.node, Action: lab.Start})
}

// control starts pods for which all is allowed, with all addresses that others
// have.
func (c *startCluster) control(t *testing.T) {
	t.Helper()
	for worker := range startsAtOnce {
		for range 2 {
			start := controls + c.controls.Add(1)
			s, f, err := c.begin(start, worker)
			if err != nil {
				t.Fatal(err)
			}
			err = insist(func() error { // the last pod may not have given up the addresses
				_, err := c.runtime.add(s, 0, nil, f.pod.addrs...)
				return err
			})
			if err == nil {
				err = f.allPass()
			}
			if err := errors.Join(err, c.end(s, f)); err != nil {
				t.Fatalf("a pod for which all is allowed: %v", err)
			}
		}
	}
}
