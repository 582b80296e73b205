package etcd

import (
	"fmt"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

const (
	root         = "/twill/v1/"
	electionRoot = "/twill/elections/"
)

// kindPath is the prefix of all keys of the kind.
func kindPath(kind *api.Kind) string {
	group := kind.Group
	if group == "" {
		group = "core"
	}
	return root + group + "/" + kind.Plural + "/"
}

func keyPath(kind *api.Kind, key api.Key) string {
	if !kind.Namespaced {
		return kindPath(kind) + key.Name
	}
	return kindPath(kind) + key.Namespace + "/" + key.Name
}

// parsePath is the inverse of keyPath.
func parsePath(kind *api.Kind, path string) (api.Key, error) {
	rest, ok := strings.CutPrefix(path, kindPath(kind))
	key := api.Key{Name: rest}
	if kind.Namespaced {
		key.Namespace, key.Name, _ = strings.Cut(rest, "/")
	}
	if !ok || store.CheckKey(kind, key) != nil {
		return key, fmt.Errorf("the path is no key of a %s", kind.Name)
	}
	return key, nil
}

// decode returns the key as far as it can be told, also with an error.
func decode(kind *api.Kind, kv *mvccpb.KeyValue) (api.Object, api.Key, error) {
	key, err := parsePath(kind, string(kv.Key))
	if err != nil {
		return nil, key, err
	}
	obj, err := store.Decode(kind, key, kv.Value, strconv.FormatInt(kv.ModRevision, 10))
	return obj, key, err
}

// position is a point in the history of one cluster. A revision alone does not
// name it: a cluster put back from a backup counts on from the backup, and gives
// the same numbers to other changes. Such a cluster has a new id, or starts again
// from a low raft term, or at least lacks what was seen of its past.
type position struct {
	revision int64
	cluster  uint64
	term     uint64
	past     uint64 // its number in history; means something in this process only
}

func positionOf(h *pb.ResponseHeader, revision int64, past uint64) position {
	return position{revision, h.ClusterId, h.RaftTerm, past}
}

// String is "revision.cluster.term.past", numbers in base 36.
func (p position) String() string {
	text := strconv.FormatInt(p.revision, 36)
	for _, n := range []uint64{p.cluster, p.term, p.past} {
		text += "." + strconv.FormatUint(n, 36)
	}
	return text
}

// event is what a watch delivers when it has got to the position.
func (p position) event(what store.EventType, obj api.Object) store.Event {
	return store.Event{Type: what, Object: obj, Revision: p.String(), Reached: uint64(p.revision)}
}

func parsePosition(text string) (p position, err error) {
	parts := strings.Split(text, ".")
	numbers := []*uint64{&p.cluster, &p.term, &p.past}
	if len(parts) == 1+len(numbers) {
		p.revision, err = strconv.ParseInt(parts[0], 36, 64)
		for i, n := range numbers {
			if err == nil {
				*n, err = strconv.ParseUint(parts[1+i], 36, 64)
			}
		}
	}
	if len(parts) != 1+len(numbers) || err != nil {
		return position{}, fmt.Errorf("%q is not a revision of a list or an event", text)
	}
	return p, nil
}
