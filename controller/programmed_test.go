package controller

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/store/memory"
)

// recorded is an orchestrated store that keeps the Events.
type recorded struct {
	orchestrated
	mu     sync.Mutex
	events []string
}

func (s *recorded) RecordWarning(_ context.Context, about api.Object, reason, message string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, api.KeyOf(about).String()+" "+reason+": "+message)
	return nil
}

// reporting is a cluster whose nodes report on Services.
type reporting struct {
	*cluster
	store *recorded
	seen  int // Events
}

func inReportingCluster(t *testing.T, test func(c *reporting)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{T: t, Store: memory.New()}
		test(&reporting{c, &recorded{orchestrated: orchestrated{c.Store}}, 0})
		if t.Failed() {
			t.Log(c.log.buf.String())
		}
	})
}

// run starts a controller and returns how to stop it.
func (c *reporting) run() (stop func()) {
	ctx, cancel := context.WithCancel(c.Context())
	done := make(chan error, 1)
	go func() { done <- New(c.store, Config{Logger: slog.New(slog.NewTextHandler(&c.log, nil))}).Run(ctx) }()
	c.settle()
	return func() {
		cancel()
		if err := <-done; err != nil {
			c.Error(err)
		}
	}
}

// report makes the details, by their subjects, all that a node's agent reports of
// Services. The condition is written as agents do.
func (c *reporting) report(name string, details map[string]string) {
	c.Helper()
	var conditions []health.Condition
	for _, subject := range slices.Sorted(maps.Keys(details)) {
		conditions = append(conditions, health.Condition{Code: health.ServiceNotProgrammed, Subject: subject, Detail: details[subject]})
	}
	edit(c.cluster, node(name), func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		if len(conditions) > 0 {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{
				Type: corev1.NodeConditionType(api.ConditionPrefix + health.ServiceNotProgrammed), Status: corev1.ConditionTrue, Message: health.Message(conditions),
			})
		}
	})
	c.settle()
}

// want holds a Service's condition ("": none) and what Events came since the last call.
func (c *reporting) want(name, message string, events ...string) {
	c.Helper()
	condition := apimeta.FindStatusCondition(get(c.cluster, svc(name)).Status.Conditions, ProgrammedCondition)
	switch {
	case message == "" && condition != nil:
		c.Errorf("service %s has a condition: %s", name, condition.Message)
	case message != "" && condition == nil:
		c.Errorf("service %s has no condition, want %q", name, message)
	case message != "" && (condition.Message != message || condition.Status != metav1.ConditionFalse || condition.Reason != ReasonNotProgrammed):
		c.Errorf("service %s: %+v, want %q", name, condition, message)
	}
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if got := c.store.events[c.seen:]; !slices.Equal(got, events) {
		c.Errorf("Events %q, want %q", got, events)
	}
	c.seen = len(c.store.events)
}

// TestRefusedServiceIsTold: the condition and the Events of a Service follow what nodes
// report of it, and no other Service is written.
func TestRefusedServiceIsTold(t *testing.T) {
	inReportingCluster(t, func(c *reporting) {
		c.create(node("node01"), node("node02"), svc("shop"), svc("other"))
		edit(c.cluster, svc("shop"), func(s *corev1.Service) {
			s.Status.Conditions = []metav1.Condition{{Type: "example.com/Ready", Status: metav1.ConditionTrue, Reason: "Ready"}}
		})
		untouched := get(c.cluster, svc("other")).ResourceVersion
		defer c.run()()
		c.want("shop", "")

		c.report("node01", map[string]string{"default/shop": "externalIPs: not allowed", "default/gone": "x", "host ports of pod default/shop": "y"})
		c.want("shop", "externalIPs: not allowed", "default/shop NotProgrammed: externalIPs: not allowed")
		c.report("node02", map[string]string{"default/shop": "externalIPs: not allowed"})
		c.want("shop", "externalIPs: not allowed") // one node more
		c.report("node01", map[string]string{"default/shop": "80/tcp is taken"})
		c.want("shop", "80/tcp is taken; externalIPs: not allowed", "default/shop NotProgrammed: 80/tcp is taken; externalIPs: not allowed")
		c.remove(node("node02"))
		c.settle()
		c.want("shop", "80/tcp is taken", "default/shop NotProgrammed: 80/tcp is taken")
		c.report("node01", nil)
		c.want("shop", "")
		c.report("node01", map[string]string{"default/shop": "80/tcp is taken"})
		c.want("shop", "80/tcp is taken", "default/shop NotProgrammed: 80/tcp is taken") // it appears again

		c.remove(svc("shop"))
		c.create(svc("shop")) // before any node tells of it
		c.settle()
		c.want("shop", "80/tcp is taken", "default/shop NotProgrammed: 80/tcp is taken")
		edit(c.cluster, svc("shop"), func(s *corev1.Service) {
			s.Status.Conditions = []metav1.Condition{{Type: "example.com/Ready", Status: metav1.ConditionTrue, Reason: "Ready"}}
		})
		c.settle()
		c.want("shop", "80/tcp is taken", "default/shop NotProgrammed: 80/tcp is taken") // another writer took it away

		long := strings.Repeat("ä", 2000)
		c.report("node01", map[string]string{"default/shop": long})
		c.want("shop", long[:996]+"…", "default/shop NotProgrammed: "+long[:996]+"…")

		if got := get(c.cluster, svc("other")).ResourceVersion; got != untouched {
			c.Error("a Service was written of which no node reports anything")
		}
		if apimeta.FindStatusCondition(get(c.cluster, svc("shop")).Status.Conditions, "example.com/Ready") == nil {
			c.Error("the condition of another writer is gone")
		}
	})
}

// TestRefusedServiceAcrossControllers: a new controller repeats no Event, and takes back
// what nodes no longer report. A node whose agent starts has not changed its mind.
func TestRefusedServiceAcrossControllers(t *testing.T) {
	inReportingCluster(t, func(c *reporting) {
		c.create(node("node01"), svc("a"), svc("b"))
		stop := c.run()
		c.report("node01", map[string]string{"default/a": "x"})
		c.report("node01", map[string]string{"default/a": "x", "default/b": "y"})
		c.want("a", "x", "default/a NotProgrammed: x", "default/b NotProgrammed: y")
		stop()
		c.report("node01", map[string]string{"default/b": "y"})
		stop = c.run()
		defer func() { stop() }()
		c.want("a", "")
		c.want("b", "y")

		edit(c.cluster, node("node01"), func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeConditionType(api.ConditionPrefix + health.NotSynced), Status: corev1.ConditionTrue}}
		})
		c.settle()
		c.want("b", "y")
		c.report("node01", map[string]string{"default/b": "y"})
		c.want("b", "y")
		c.report("node01", nil)
		c.want("b", "")
	})
}

// TestRefusedServiceOutlastsOutage: a write that fails is tried again, and its Event
// comes once.
func TestRefusedServiceOutlastsOutage(t *testing.T) {
	inReportingCluster(t, func(c *reporting) {
		c.create(node("node01"), svc("shop"))
		defer c.run()()
		edit(c.cluster, node("node01"), func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{
				Type: corev1.NodeConditionType(api.ConditionPrefix + health.ServiceNotProgrammed), Status: corev1.ConditionTrue, Message: "default/shop: x",
			}}
		})
		synctest.Wait() // the controller knows
		c.SetDown(true)
		c.settle()
		c.SetDown(false)
		c.settle()
		c.want("shop", "x", "default/shop NotProgrammed: x")
	})
}

// TestOneWriteForManyNodes: a report that all nodes make within a moment costs one
// Event.
func TestOneWriteForManyNodes(t *testing.T) {
	inReportingCluster(t, func(c *reporting) {
		c.create(svc("shop"))
		defer c.run()()
		for i, name := range []string{"n1", "n2", "n3", "n4"} {
			n := node(name)
			n.Status.Conditions = []corev1.NodeCondition{{
				Type: corev1.NodeConditionType(api.ConditionPrefix + health.ServiceNotProgrammed), Status: corev1.ConditionTrue,
				Message: "default/shop: 192.0.2." + string(rune('1'+i)) + " is taken",
			}}
			c.create(n)
			synctest.Wait()
		}
		c.settle()
		all := "192.0.2.1 is taken; 192.0.2.2 is taken; 192.0.2.3 is taken; 192.0.2.4 is taken"
		c.want("shop", all, "default/shop NotProgrammed: "+all)
	})
}

// TestRefusedServiceWithoutKubernetes: the condition stands beside what else the
// controller writes on Services.
func TestRefusedServiceWithoutKubernetes(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.create(node("node01"), svc("shop"), svc("taken", func(s *corev1.ServiceSpec) { s.ClusterIP = "192.0.2.1" }))
		defer c.control(single)()
		(&reporting{cluster: c}).report("node01", map[string]string{"default/shop": "x", "default/taken": "y"})
		for name, want := range map[string]string{"shop": "x", "taken": "y"} {
			got := get(c, svc(name))
			condition := apimeta.FindStatusCondition(got.Status.Conditions, ProgrammedCondition)
			if condition == nil || condition.Message != want || got.Spec.ClusterIP == "" {
				c.Errorf("%s: %+v", name, got)
			}
			if allocated := apimeta.FindStatusCondition(got.Status.Conditions, AllocatedCondition); (allocated != nil) != (name == "taken") {
				c.Errorf("%s: %+v", name, got.Status.Conditions)
			}
		}
	})
}
