package main

import (
	"runtime"
	"syscall"
	"time"

	"github.com/twill-net/twill/api"
)

func sizeFor(quick bool) size {
	if quick {
		return quickSize
	}
	return fullSize
}

// policyNode is a node with its pods. Only the rules are made true: the pods have
// no devices here.
func policyNode(n *node, s size) *feeder {
	for i := range s.locals {
		n.planner.SetLocal(localPod(i))
	}
	return &feeder{node: n, rulesOnly: true}
}

// applyRules makes the nftables part of the plan true.
func (n *node) applyRules() (writes int, err error) {
	return n.nft.Apply(n.planner.Flush())
}

func measurePolicy(quick bool) (figures, error) {
	s, found := sizeFor(quick), figures{}
	n, err := newScaleNode()
	if err != nil {
		return nil, err
	}
	f := policyNode(n, s)
	if err := f.cold(s.eachPolicyObject, found, "sync"); err != nil {
		return nil, err
	}
	found["heap"] = liveHeap()
	found["elements"] = float64(f.node.planner.Flush().Elements.Len())

	// A pod that no policy knew becomes one that a policy allows, and so on.
	members, err := f.changes(500, func(i int) api.Object { return remotePod(s.remotes+i, i%s.policies) })
	if err != nil {
		return nil, err
	}
	found["member"], found["member99"] = median(members), percentile(members, 99)
	policies, err := f.changes(500, func(i int) api.Object { return policyOf(i*7%s.policies, 81+i%7) })
	if err != nil {
		return nil, err
	}
	found["change"], found["change99"] = median(policies), percentile(policies, 99)
	return found, f.restart(s, found)
}

// restart has a new planner and a new mirror find the kernel as it is.
func (f *feeder) restart(s size, found figures) error {
	for i := range 500 { // as it was
		f.node.planner.Delete(api.WorkloadEndpointKind, api.KeyOf(remotePod(s.remotes+i, 0)))
	}
	for i := range s.policies {
		f.node.planner.Put(policyOf(i, 80))
	}
	if _, err := f.node.applyRules(); err != nil {
		return err
	}
	f.node.close()
	ns := f.node.namespace
	f.node = nil
	runtime.GC()
	n, err := newNode(ns)
	if err != nil {
		return err
	}
	again := policyNode(n, s)
	took, _, err := again.sync(s.eachPolicyObject)
	found["restart"], found["writes"] = took.Seconds(), float64(again.writes)
	return err
}

// churnRate is how many endpoints change in a second.
const churnRate = 1000

// measureChurn has endpoints come, change and go at a steady rate, and takes them
// in as the agent does: all that waits becomes one round.
func measureChurn(quick bool) (figures, error) {
	s, length := sizeFor(quick), time.Minute
	if quick {
		length = 3 * time.Second
	}
	n, err := newScaleNode()
	if err != nil {
		return nil, err
	}
	f := policyNode(n, s)
	if _, _, err := f.sync(s.eachPolicyObject); err != nil {
		return nil, err
	}
	total := int(length.Seconds()) * churnRate
	var lags []float64
	began, start := processorTime(), time.Now()
	due := func(i int) time.Time { return start.Add(time.Duration(i) * time.Second / churnRate) }
	for done := 0; done < total; {
		if wait := time.Until(due(done)); wait > 0 {
			time.Sleep(wait)
		}
		first := done
		for ; done < total && time.Since(due(done)) >= 0; done++ {
			if err := f.churn(s, done); err != nil {
				return nil, err
			}
		}
		if _, err := f.node.applyRules(); err != nil {
			return nil, err
		}
		now := time.Now()
		for i := first; i < done; i++ {
			lags = append(lags, milliseconds(now.Sub(due(i))))
		}
	}
	found := figures{"cpu": (processorTime() - began) / time.Since(start).Seconds(), "rss": memory("VmRSS")}
	found["lag"], found["lag99"], found["lagmax"] = median(lags), percentile(lags, 99), percentile(lags, 100)
	return found, nil
}

// churn is the i-th change: a third of them are new endpoints, a third change
// whom they are, a third go.
func (f *feeder) churn(s size, i int) error {
	pod := s.remotes + i/3
	switch i % 3 {
	case 0:
		return f.put(remotePod(pod, pod%s.policies))
	case 1:
		return f.put(remotePod(pod, (pod+1)%s.policies))
	}
	f.node.planner.Delete(api.WorkloadEndpointKind, api.KeyOf(remotePod(pod, 0)))
	return nil
}

// processorTime is what this process has used, in seconds.
func processorTime() float64 {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r) // fails for a wrong argument only
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}
