package cli

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/health"
)

func TestLeaseIsJudged(t *testing.T) {
	now, seconds := time.Now(), int32(15)
	for _, c := range []struct {
		age  time.Duration
		want health.Code
		says string
	}{
		{4 * time.Second, "", "ready"},
		{-4 * time.Second, "", "ready"}, // clocks are never quite the same
		{time.Minute, health.AgentSilent, "silent for 1m0s"},
		{-time.Hour, health.ClockAhead, "ahead by 1h0m0s"},
	} {
		renewed := metav1.NewMicroTime(now.Add(-c.age))
		lease := &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{RenewTime: &renewed, LeaseDurationSeconds: &seconds}}
		if node, got := statusOf(new(corev1.Node), lease, now); got != c.want || node.Agent != c.says {
			t.Errorf("renewed %s ago: %q, %q; want %q, %q", c.age, got, node.Agent, c.want, c.says)
		}
	}
	if _, got := statusOf(new(corev1.Node), nil, now); got != health.AgentSilent {
		t.Errorf("no lease: %q", got)
	}
}
