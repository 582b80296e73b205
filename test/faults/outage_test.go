package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
)

// TestStoreAway stops etcd. Pods start and stop meanwhile, with the policies that
// there are; what others have to know of them waits.
func TestStoreAway(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newScene(t, lab.Config{})
	s.start(t, "old", "node02", "client")
	e := s.underLoad(t, fmt.Sprintf("etcd stopped for %s", *outage), func() (time.Duration, string) {
		s.control(t, lab.Stop, "etcd")
		again := time.After(*outage)

		s.start(t, "server-3", "master", "server")
		s.start(t, "client-2", "node01", "client")
		s.stop(t, "old")
		// The client's node and server-3's are the same, so are client-2's and
		// server-1's: each knows both. Of client-2 node02 knows nothing, and it
		// lets nobody in whom it does not know.
		s.expect(t, "client -> server-3 server-1 server-2\nclient-2 -> server-1 stranger",
			"stranger -> server-1 server-2 server-3\nclient-2 -> server-2 server-3")
		pods := 0
		for away := true; away; {
			select {
			case <-again:
				away = false
			default:
				for _, node := range s.Config.NodeNames() {
					s.start(t, "guest", node, "server")
					s.expect(t, "", "stranger -> guest")
					s.stop(t, "guest")
					pods++
				}
			}
		}
		t.Logf("%d pods came and went while the store was away", pods+3)

		s.control(t, lab.Start, "etcd")
		began := time.Now()
		s.settled(t)
		took := time.Since(began)
		s.expect(t, "client-2 -> server-1 server-2 server-3", "stranger -> server-1 server-2 server-3")
		return took, "the store told of all pods and of no condition"
	})
	e.nothingLost(t)
	s.asPlanned(t)
}
