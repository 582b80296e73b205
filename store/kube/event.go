package kube

import (
	"context"
	"fmt"

	json "github.com/go-json-experiment/json/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// eventSource is the component that `kubectl describe` shows with an Event.
const eventSource = "twill-controller"

// RecordWarning implements store.EventRecorder.
func (s *Store) RecordWarning(ctx context.Context, about api.Object, reason, message string) error {
	kind, key, err := store.CheckObject(about)
	if err != nil {
		return err
	}
	now := metav1.Now()
	value, err := json.Marshal(&corev1.Event{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, GenerateName: key.Name + "."},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: kind.APIVersion(), Kind: kind.Name, Namespace: key.Namespace, Name: key.Name,
			UID: about.GetUID(), ResourceVersion: about.GetResourceVersion(),
		},
		Type: corev1.EventTypeWarning, Reason: reason, Message: message,
		Source: corev1.EventSource{Component: eventSource}, ReportingController: eventSource,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	})
	if err == nil {
		_, err = s.call(ctx, func() *rest.Request {
			return s.client.Post().AbsPath("/api/v1/namespaces/"+key.Namespace+"/events").SetHeader("Content-Type", "application/json").Body(value)
		})
	}
	if err != nil {
		return fmt.Errorf("create an Event about %s %s: %w", kind.Name, key, err)
	}
	return nil
}
