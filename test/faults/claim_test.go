package faults

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/testlab"
)

// smallPool has 16 blocks of 4 addresses, of which two are never given out: three
// nodes with 12 pods each need 9, and want 6 more to have some ahead.
const smallPool = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: default-ipv4}
spec: {cidr: 10.244.0.0/16, natOutgoing: true, disabled: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: small}
spec: {cidr: 10.99.0.0/26, blockSize: 30, natOutgoing: true}
`

const podsOfEach = 11

// TestBlocksClaimedAtOnce starts so many pods on all nodes at the same time that
// they contend for the last blocks of a pool.
func TestBlocksClaimedAtOnce(t *testing.T) {
	s := newScene(t, lab.Config{})
	s.apply(t, smallPool)
	e := s.underLoad(t, "nodes claim the last blocks of a pool at once", func() (time.Duration, string) {
		began := time.Now()
		nodes := s.Config.NodeNames()
		failed := make([]error, len(nodes))
		var wait sync.WaitGroup
		for i, node := range nodes {
			wait.Go(func() {
				_, failed[i] = s.Run(lab.RunRequest{Namespace: namespace, Name: "many-" + node, Replicas: podsOfEach, Node: node, Idle: true})
			})
		}
		wait.Wait()
		took := time.Since(began)
		if err := errors.Join(failed...); err != nil {
			t.Error(err)
		}
		s.settled(t)
		return took, fmt.Sprintf("%d pods were attached, each address from one block of one node", len(nodes)*podsOfEach)
	})
	e.nothingLost(t)
	blocks, err := s.blocks(t)
	if err != nil {
		t.Fatal(err)
	}
	small, used := netip.MustParsePrefix("10.99.0.0/26"), 0
	for prefix := range blocks {
		if small.Contains(prefix.Addr()) {
			used++
		}
	}
	if used < 12 {
		t.Errorf("%d blocks were claimed: nobody had to contend", used)
	}
	s.asPlanned(t)
}

// TestBlockTaken gives a block that a node has pods in to another one, as somebody
// may who writes to the store by hand. What the store says holds: the node notices
// at once, gives nothing more out from the block, and names the pods.
func TestBlockTaken(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newScene(t, lab.Config{})
	const node = "node01"
	s.apply(t, smallPool)
	s.start(t, "first", node, "other")
	block := netip.PrefixFrom(s.pods["first"].address, 30).Masked()
	e := s.underLoad(t, "a node's block given to another", func() (time.Duration, string) {
		key := api.Key{Name: ipam.BlockName(block)}
		obj, err := s.store.Get(t.Context(), api.IPAMBlockKind, key)
		if err != nil {
			t.Fatal(err)
		}
		b := obj.(*api.IPAMBlock)
		b.Spec.Affinity = "host:node02"
		if _, err := s.store.Update(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		took := testlab.Eventually(t, patience, func() error { return s.wrong(t, []string{"BlockLost"}) })
		for i := range 4 {
			name := fmt.Sprint("next-", i)
			s.start(t, name, node, "other")
			if a := s.pods[name].address; block.Contains(a) {
				t.Errorf("%s was given out from %s", a, block)
			}
		}
		s.expect(t, "next-0 -> first next-1\nclient -> next-0", "client -> first")
		s.control(t, lab.Kill, node)
		s.control(t, lab.Start, node)
		testlab.Eventually(t, patience, func() error { return s.wrong(t, []string{"BlockLost"}) })
		s.stop(t, "first")
		s.settled(t)
		return took, "the node had given it up and said so"
	})
	e.nothingLost(t)
	s.asPlanned(t)
}
