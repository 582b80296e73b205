package controller

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/store"
)

// ProgrammedCondition is the type of the condition that a Service has, with status
// False, while nodes report that they do not program something that it asks for.
// Services that are programmed in full, or by another program, don't have it.
const ProgrammedCondition = api.GroupTwill + "/Programmed"

// ReasonNotProgrammed is the reason of the ProgrammedCondition and of its Event.
const ReasonNotProgrammed = "NotProgrammed"

const (
	// programmedDelay is between a node's report and the Service's condition. Most
	// nodes report the same within it, and so cause one write together.
	programmedDelay = 2 * time.Second
	// programmedBytes bounds a message; Kubernetes bounds that of an Event to 1024.
	programmedBytes = 1000
)

// refusals are what nodes report not to program of Services. A reconciler's lock
// guards them.
type refusals struct {
	nodes   map[string]refusal
	details map[api.Key]map[string]int // of a Service: how many nodes report each detail
	due     map[api.Key]struct{}       // Services whose condition may be out of date
}

// refusal is the report of one node.
type refusal struct {
	message  string // of the Node's condition, of which services are made
	services map[api.Key]string
}

func newRefusals() *refusals {
	return &refusals{nodes: map[string]refusal{}, details: map[api.Key]map[string]int{}, due: map[api.Key]struct{}{}}
}

// put takes a node's report, "" if it has none, and returns the Services of which
// the set of details changed.
func (r *refusals) put(node, message string) (changed []api.Key) {
	old := r.nodes[node]
	if old.message == message {
		return nil // as most changes of a Node
	}
	now := map[api.Key]string{}
	for subject, detail := range health.Details(message) {
		namespace, name, _ := strings.Cut(subject, "/")
		key := api.Key{Namespace: namespace, Name: name}
		// Other subjects are the host ports of pods.
		if store.CheckKey(api.ServiceKind, key) == nil {
			now[key] = detail
		}
	}
	delete(r.nodes, node)
	if message != "" {
		r.nodes[node] = refusal{message, now}
	}
	for key, detail := range now {
		if before, had := old.services[key]; (!had || before != detail) && r.add(key, detail) {
			changed = append(changed, key)
		}
	}
	for key, detail := range old.services {
		if after, has := now[key]; (!has || after != detail) && r.remove(key, detail) {
			changed = append(changed, key)
		}
	}
	return changed
}

// add says whether the node is the first to report the detail.
func (r *refusals) add(key api.Key, detail string) bool {
	if r.details[key] == nil {
		r.details[key] = map[string]int{}
	}
	r.details[key][detail]++
	return r.details[key][detail] == 1
}

// remove says whether the node was the last to report the detail.
func (r *refusals) remove(key api.Key, detail string) bool {
	r.details[key][detail]--
	if r.details[key][detail] > 0 {
		return false
	}
	delete(r.details[key], detail)
	if len(r.details[key]) == 0 {
		delete(r.details, key)
	}
	return true
}

// message is all details of a Service in one line, each once whichever nodes report
// it; "" if no node does.
func (r *refusals) message(key api.Key) string {
	text := strings.Join(slices.Sorted(maps.Keys(r.details[key])), "; ")
	if len(text) > programmedBytes {
		const more = "…"
		text = strings.ToValidUTF8(text[:programmedBytes-len(more)], "") + more
	}
	return text
}

// putNode notes what the node's agent reports of Services. While an agent starts it
// has not judged any, and what it reported before holds.
func (r *reconciler) putNode(n *corev1.Node) {
	message := ""
	for _, c := range n.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case corev1.NodeConditionType(api.ConditionPrefix + health.NotSynced):
			return
		case corev1.NodeConditionType(api.ConditionPrefix + health.ServiceNotProgrammed):
			message = c.Message
		}
	}
	r.noteRefusals(n.Name, message)
}

func (r *reconciler) noteRefusals(node, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range r.refusals.put(node, message) {
		r.reportLater(key)
	}
}

// reportLater has the condition of a Service brought up to date after
// programmedDelay. The caller has the lock.
func (r *reconciler) reportLater(key api.Key) {
	if _, already := r.refusals.due[key]; already {
		return
	}
	r.refusals.due[key] = struct{}{}
	time.AfterFunc(programmedDelay, func() { r.queue.add(item{api.ServiceKind, key}) })
}

// examineService finds a condition that is not what nodes report: that of a Service
// made anew under its name, or one written by a controller before this one.
func (r *reconciler) examineService(svc *corev1.Service) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key, message := api.KeyOf(svc), ""
	if c := apimeta.FindStatusCondition(svc.Status.Conditions, ProgrammedCondition); c != nil {
		message = c.Message
	}
	if message != r.refusals.message(key) {
		r.reportLater(key)
	}
}

// reconcileProgrammed makes the Service's condition what nodes report.
func (r *reconciler) reconcileProgrammed(ctx context.Context, key api.Key) error {
	r.mu.Lock()
	_, due := r.refusals.due[key]
	delete(r.refusals.due, key)
	message := r.refusals.message(key)
	r.mu.Unlock()
	if !due {
		return nil
	}
	err := r.writeProgrammed(ctx, key, message)
	if err == nil || errors.Is(err, store.ErrNotFound) {
		return nil // nodes have not heard yet that the Service is gone
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusals.due[key] = struct{}{} // the queue tries again
	return err
}

func (r *reconciler) writeProgrammed(ctx context.Context, key api.Key, message string) error {
	obj, err := r.store.Get(ctx, api.ServiceKind, key)
	if err != nil {
		return err
	}
	svc := obj.(*corev1.Service)
	if message == "" {
		if apimeta.RemoveStatusCondition(&svc.Status.Conditions, ProgrammedCondition) {
			_, err = r.store.Update(ctx, svc)
		}
		return err
	}
	changed := apimeta.SetStatusCondition(&svc.Status.Conditions, metav1.Condition{
		Type: ProgrammedCondition, Status: metav1.ConditionFalse, Reason: ReasonNotProgrammed, Message: message,
	})
	if !changed {
		return nil
	}
	if _, err := r.store.Update(ctx, svc); err != nil {
		return err
	}
	r.log.Warn("a service asks for something that nodes do not program", "service", key.String(), "detail", message)
	events, ok := r.store.(store.EventRecorder)
	if !ok {
		return nil
	}
	// After the condition, which says that there was an Event: at most one each time.
	if err := events.RecordWarning(ctx, svc, ReasonNotProgrammed, message); err != nil {
		r.log.Warn("an Event could not be created; the service's condition has the same message", "service", key.String(), "error", err)
	}
	return nil
}
