package faults

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// TestClockSteps stops all agents and the controller in their tracks. To a process
// that goes on afterwards all clocks have stepped: all that it timed is due, and
// what it held for a time is no longer its own.
func TestClockSteps(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newScene(t, lab.Config{})
	s.start(t, "later", "node01", "later")
	s.expect(t, "client -> later", "")
	e := s.underLoad(t, fmt.Sprintf("clocks step by %s", *outage), func() (time.Duration, string) {
		proceed := s.freeze(t)
		again := time.After(*outage)
		s.apply(t, isolate("later", "later"))
		<-again
		proceed()
		began := time.Now()
		testlab.Eventually(t, patience, func() error { return s.differences("", "client -> later") })
		took := time.Since(began) - silence
		s.start(t, "guest", "node02", "client")
		s.expect(t, "guest -> server-1 server-2", "client guest -> later")
		s.stop(t, "guest")
		s.settled(t)
		return took, "what was new meanwhile was in force"
	})
	e.nothingLost(t)
	s.asPlanned(t)
}

// freeze stops the agents and the controller until proceed is called.
func (s *scene) freeze(t *testing.T) (proceed func()) {
	t.Helper()
	status, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	pids := []int{status.Controller.PID}
	for _, n := range status.Nodes {
		pids = append(pids, n.Agent.PID)
	}
	send := func(signal syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, signal); err != nil {
				t.Error(err)
			}
		}
	}
	stopped := true
	proceed = func() {
		if stopped {
			send(syscall.SIGCONT)
		}
		stopped = false
	}
	t.Cleanup(proceed)
	send(syscall.SIGSTOP)
	return proceed
}

// TestClockWrong has one node's clock be an hour off. The clock of a lab is the
// machine's, so what its agent would write is written for it: the time of its
// lease is all that others see of its clock.
func TestClockWrong(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newScene(t, lab.Config{})
	const node = "node01"
	for off, code := range map[time.Duration]string{time.Hour: "ClockAhead", -time.Hour: "AgentSilent"} {
		e := s.underLoad(t, fmt.Sprintf("a node's clock is off by %s", off), func() (time.Duration, string) {
			s.control(t, lab.Kill, node)
			s.renewLease(t, node, time.Now().Add(off))
			s.expect(t, "client -> server-1 server-2", "stranger -> server-1 server-2")
			testlab.Eventually(t, patience, func() error { return s.wrong(t, []string{code}) })
			began := time.Now()
			s.control(t, lab.Start, node)
			s.settled(t)
			return time.Since(began), "its agent had begun anew, and " + code + " was told no more"
		})
		e.nothingLost(t)
	}
	s.asPlanned(t)
}

func (s *scene) renewLease(t *testing.T, node string, at time.Time) {
	t.Helper()
	key := api.Key{Namespace: api.LeaseNamespace, Name: api.LeaseName(node)}
	testlab.Eventually(t, patience, func() error {
		obj, err := s.store.Get(t.Context(), api.LeaseKind, key)
		if err != nil {
			return err
		}
		lease := obj.(*coordinationv1.Lease).DeepCopy()
		renewed := metav1.NewMicroTime(at)
		lease.Spec.RenewTime = &renewed
		_, err = s.store.Update(t.Context(), lease)
		return err
	})
}
