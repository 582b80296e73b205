package faults

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/test/testlab"
)

// isolate is a policy that lets nobody in to the pods with a label.
func isolate(name, app string) string {
	return fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %s, namespace: a}
spec: {podSelector: {matchLabels: {app: %s}}}
`, name, app)
}

// TestStoreRestored puts etcd back from a backup. Of what has happened since then,
// intent is gone, and what nodes know for themselves is not: a node that joined,
// its block and its pods must not be missed for a moment, and a pod that is gone
// must not come back. One node is cut off meanwhile, until the restored store has
// counted on past all that this node knows. (What the backup says of its pods
// nobody else can put right, so nothing of it changes after the backup.)
func TestStoreRestored(t *testing.T) {
	t.Parallel() // it waits more than it works
	needNft(t)
	s := newScene(t, lab.Config{})
	s.start(t, "former", "master", "server")   // goes after the backup
	s.start(t, "later", "node01", "later")     // is isolated after the backup
	s.start(t, "guarded", "node02", "guarded") // is isolated no more after the backup
	s.apply(t, isolate("guarded", "guarded"))
	s.expect(t, "client -> later", "client -> guarded")
	s.settled(t)

	// What joins after the backup is not in it.
	s.control(t, lab.Stop, "node01")
	s.forgetNode(t, "node01")
	backup := s.backUp(t)
	s.control(t, lab.Start, "node01")

	s.start(t, "server-3", "master", "server")
	s.stop(t, "former")
	s.apply(t, isolate("later", "later"))
	if _, err := s.Twill(t.Context(), "", "delete", "networkpolicy", "guarded", "-n", namespace); err != nil {
		t.Fatal(err)
	}
	s.settled(t)
	s.expect(t, "client -> server-1 server-2 server-3 guarded", "client -> later\nstranger -> server-1 server-2 server-3")

	e := s.underLoad(t, "etcd put back from a backup", func() (time.Duration, string) {
		s.cut(t, "node02")
		known := s.revision(t)
		s.putBack(t, backup)
		began := time.Now()
		for s.revision(t) <= known {
		}
		s.join(t, "node02")
		s.expect(t, "client -> later", "client -> guarded")
		return time.Since(began), fmt.Sprintf("its content was in force; nodes have %s for what they know", store.RestoreGrace)
	})
	e.nothingLost(t)
	s.settled(t)
	s.expect(t, "client -> server-1 server-2 server-3 later", "client -> guarded\nstranger -> server-1 server-2 server-3")
	s.asPlanned(t)
}

func needNft(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skipf("needs the program nft, to cut a node off: %v", err)
	}
}

// cut drops all packets between a node and etcd, join lets them pass again.
func (s *scene) cut(t *testing.T, node string) {
	t.Helper()
	s.at(t, node, `nft 'table inet faults {
		chain out { type filter hook output priority 0; tcp dport 2379 drop; }
		chain in { type filter hook input priority 0; tcp sport 2379 drop; }
	}'`)
}

func (s *scene) join(t *testing.T, node string) {
	t.Helper()
	s.at(t, node, "nft delete table inet faults")
}

// at executes a script on a node.
func (s *scene) at(t *testing.T, node, script string) string {
	t.Helper()
	out, err := s.At(t.Context(), lab.Node(node), "sh", "-ec", script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// forgetNode deletes a node whose agent is stopped and waits until nothing of it
// is left in the store.
func (s *scene) forgetNode(t *testing.T, name string) {
	t.Helper()
	if err := s.store.Delete(t.Context(), api.NodeKind, api.Key{Name: name}, ""); err != nil {
		t.Fatal(err)
	}
	testlab.Eventually(t, patience, func() error {
		blocks, err := s.blocks(t)
		for prefix, owner := range blocks {
			if owner == name {
				err = fmt.Errorf("block %s is still that of %s", prefix, owner)
			}
		}
		return err
	})
}

// etcdDir is where the master has the store.
const etcdDir = "/run/etcd"

// backUp keeps the store as it is now, as a copy of its volume.
func (s *scene) backUp(t *testing.T) (path string) {
	t.Helper()
	path = etcdDir + "-backup"
	s.control(t, lab.Stop, "etcd")
	s.at(t, "master", "cp -a "+etcdDir+" "+path)
	s.control(t, lab.Start, "etcd")
	return path
}

func (s *scene) putBack(t *testing.T, path string) {
	t.Helper()
	s.control(t, lab.Stop, "etcd")
	s.at(t, "master", fmt.Sprintf("rm -rf %s && mv %s %s", etcdDir, path, etcdDir))
	s.control(t, lab.Start, "etcd")
}

// revision is that of the last write, which this is.
func (s *scene) revision(t *testing.T) int64 {
	t.Helper()
	var revision int64
	testlab.Eventually(t, patience, func() error {
		key := api.Key{Name: "counter"}
		obj, err := s.store.Get(t.Context(), api.NamespaceKind, key)
		if errors.Is(err, store.ErrNotFound) {
			obj = api.NamespaceKind.New()
			obj.SetName(key.Name)
			obj, err = s.store.Create(t.Context(), obj)
		}
		if err != nil {
			return err
		}
		ns := obj.(*corev1.Namespace)
		ns.Annotations = map[string]string{"at": time.Now().String()}
		if obj, err = s.store.Update(t.Context(), ns); err != nil {
			return err
		}
		revision, err = strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
		return err
	})
	return revision
}
