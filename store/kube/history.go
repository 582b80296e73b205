package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// position is a revision of one cluster. The API server does not tell clusters
// apart, so a cluster goes by the uid of its namespace kube-system, as is usual.
type position struct {
	cluster  string
	revision uint64
}

func (p position) String() string { return p.cluster + "." + strconv.FormatUint(p.revision, 10) }

// bookmark is the event that says that a watch has got to the position.
func (p position) bookmark() store.Event {
	return store.Event{Type: store.Bookmark, Revision: p.String(), Reached: p.revision}
}

func parsePosition(text string) (position, error) {
	cluster, number, _ := strings.Cut(text, ".")
	revision, err := strconv.ParseUint(number, 10, 64)
	if err != nil || cluster == "" {
		return position{}, fmt.Errorf("revision %q is none of this store's", text)
	}
	return position{cluster, revision}, nil
}

// history says which cluster answers, and its revision now.
func (s *Store) history(ctx context.Context) (cluster string, revision uint64, err error) {
	body, err := s.call(ctx, func() *rest.Request {
		return s.client.Get().AbsPath(listPath(api.NamespaceKind, "")).Param("fieldSelector", "metadata.name="+metav1.NamespaceSystem)
	})
	if err != nil {
		return "", 0, err
	}
	var answer struct {
		Metadata metav1.ListMeta
		Items    []metav1.PartialObjectMetadata
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", 0, fmt.Errorf("the API server's answer is no list: %w", err)
	}
	if len(answer.Items) == 0 {
		return "", 0, fmt.Errorf("%w: the cluster has no namespace %s yet", store.ErrUnavailable, metav1.NamespaceSystem)
	}
	revision, err = strconv.ParseUint(answer.Metadata.ResourceVersion, 10, 64)
	if err != nil {
		return "", 0, fmt.Errorf("resourceVersion %q of a list is no number", answer.Metadata.ResourceVersion)
	}
	return string(answer.Items[0].UID), revision, nil
}

// confirm returns ErrRestored if the position is of another cluster, or lies
// ahead of this one's: it was put back from a backup.
func (s *Store) confirm(ctx context.Context, from position) error {
	cluster, revision, err := s.history(ctx)
	if err == nil && (cluster != from.cluster || revision < from.revision) {
		return store.ErrRestored
	}
	return err
}
