package faults

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// TestAgentsKilled kills agents without a word, one after the other, every other
// one of them again while it starts, and pods come and go meanwhile: what one
// agent has begun the next must end, or undo.
func TestAgentsKilled(t *testing.T) {
	s := newScene(t, lab.Config{})
	var ready []time.Duration
	kills := 0
	e := s.underLoad(t, fmt.Sprintf("agents killed -9 in a loop for %s", *period), func() (time.Duration, string) {
		stop := s.comeAndGo(t)
		nodes := s.Config.NodeNames()
		for until := time.Now().Add(*period); time.Now().Before(until); kills++ {
			node := nodes[kills%len(nodes)]
			s.control(t, lab.Kill, node)
			for rand.N(2) == 0 {
				kills++
				s.killWhileItStarts(t, node, rand.N(200*time.Millisecond))
			}
			began := time.Now()
			s.control(t, lab.Start, node)
			ready = append(ready, time.Since(began))
		}
		stop()
		s.settled(t)
		slices.Sort(ready)
		return ready[len(ready)-1], fmt.Sprintf("the slowest of %d agents took pods on (median %s)", len(ready), ready[len(ready)/2].Round(time.Millisecond))
	})
	t.Logf("%d agents were killed", kills)
	e.nothingLost(t)
	s.asPlanned(t)
}

// killWhileItStarts starts an agent and kills it after a while.
func (s *scene) killWhileItStarts(t *testing.T, node string, after time.Duration) {
	t.Helper()
	started := make(chan error, 1)
	go func() { started <- s.Control(request(lab.Start, node)) }()
	pid := 0
	testlab.Eventually(t, patience, func() error {
		status, err := s.Status()
		if err != nil {
			return err
		}
		for _, n := range status.Nodes {
			if n.Name == node && n.Agent.Running {
				pid = n.Agent.PID
				return nil
			}
		}
		return fmt.Errorf("the agent of %s does not run", node)
	})
	<-time.After(after)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// It was ready before it was killed, or never. In both cases it has ended
	// before another can be started.
	<-started
	testlab.Eventually(t, patience, func() error {
		status, err := s.Status()
		if err != nil {
			return err
		}
		for _, n := range status.Nodes {
			if n.Name == node && n.Agent.Running {
				return fmt.Errorf("the agent of %s still runs", node)
			}
		}
		return nil
	})
}

// comeAndGo has a pod attached and detached on each node, again and again, until
// stop is called. That it fails while there is no agent is no error: runtimes
// try again.
func (s *scene) comeAndGo(t *testing.T) (stop func()) {
	ended := make(chan struct{})
	var done []chan int
	for _, node := range s.Config.NodeNames() {
		n := make(chan int)
		done = append(done, n)
		go func() {
			name, attached := "guest-"+node, 0
			for {
				select {
				case <-ended:
					n <- attached
					return
				default:
				}
				if _, err := s.run(name, node, "client"); err != nil {
					continue
				}
				attached++
				if _, err := s.Remove(lab.RemoveRequest{Namespace: namespace, Names: []string{name}}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	return func() {
		close(ended)
		for i, node := range s.Config.NodeNames() {
			t.Logf("%d pods came and went on %s", <-done[i], node)
		}
	}
}
