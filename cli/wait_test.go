package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
)

// programmed writes an agent's lease, renewed now, as the terminal's clock has it.
func (term *terminal) programmed(t *testing.T, node, revisions string, ago time.Duration) {
	t.Helper()
	key := api.Key{Namespace: api.LeaseNamespace, Name: api.LeaseName(node)}
	renewed, seconds := metav1.NewMicroTime(term.session(nil).now().Add(-ago)), int32(15)
	lease := api.LeaseKind.New().(*coordinationv1.Lease)
	lease.Namespace, lease.Name = key.Namespace, key.Name
	lease.Spec = coordinationv1.LeaseSpec{RenewTime: &renewed, LeaseDurationSeconds: &seconds}
	if revisions != "" {
		lease.Annotations = map[string]string{api.ProgrammedAnnotation: revisions}
	}
	old, err := term.store.Get(t.Context(), api.LeaseKind, key)
	if err == nil {
		lease.ResourceVersion = old.GetResourceVersion()
		_, err = term.store.Update(t.Context(), lease)
	} else {
		_, err = term.store.Create(t.Context(), lease)
	}
	if err != nil {
		t.Fatal(err)
	}
}

const waitPolicy = `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: a}, spec: {podSelector: {}}}`

// started runs a command that waits. It is not over when started returns.
func (term *terminal) started(t *testing.T, args ...string) (result func() string) {
	t.Helper()
	var out bytes.Buffer
	code, done := 0, make(chan struct{})
	go func() {
		code = term.run(context.Background(), &out, &out, nil, args...)
		close(done)
	}()
	synctest.Wait()
	time.Sleep(time.Second)
	select {
	case <-done:
		t.Errorf("twill %v did not wait: %s", args, out.String())
	default:
	}
	return func() string {
		<-done
		if code != ExitOK {
			return out.String() + "[exit]\n"
		}
		return out.String()
	}
}

func wantText(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestApplyWaitsForEveryLivingAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerminal()
		term.output(nil, "create", "namespace", "a") // revision 2
		term.programmed(t, "node01", `{"namespaces":2}`, 0)
		term.programmed(t, "node02", `{"namespaces":2}`, 0)
		term.programmed(t, "node03", `{"namespaces":2}`, time.Minute)
		term.stdin = waitPolicy // revision 6
		result := term.started(t, "apply", "-f", "-", "--wait")
		term.programmed(t, "node01", `{"networkpolicies.networking.k8s.io":6}`, 0)
		time.Sleep(time.Second)
		term.programmed(t, "node02", `{"networkpolicies.networking.k8s.io":7}`, 0)
		began := time.Now()
		wantText(t, result(), "networkpolicy.networking.k8s.io/deny created\nin force on 2 nodes\n"+
			"not waited for: node03 (the agent is silent; the node keeps the rules that it has)\n")
		if took := time.Since(began); took > time.Second {
			t.Errorf("returned %s after the last agent had it", took)
		}

		// What is there already is waited for, too.
		term.programmed(t, "node02", `{"networkpolicies.networking.k8s.io":5}`, 0)
		result = term.started(t, "apply", "-f", "-", "--wait")
		term.programmed(t, "node02", `{"networkpolicies.networking.k8s.io":6}`, 0)
		if got := result(); !strings.HasPrefix(got, "networkpolicy.networking.k8s.io/deny unchanged\nin force on 2 nodes\n") {
			t.Error(got)
		}
	})
}

func TestApplyNamesNodesThatLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerminal()
		term.output(nil, "create", "namespace", "a")
		term.stdin = waitPolicy
		wantText(t, term.output(nil, "apply", "-f", "-", "--wait=2s"), "networkpolicy.networking.k8s.io/deny created\n"+
			"error: not in force anywhere after 2s: no agent is alive (`twill status`)\n[exit 1]\n")

		node := api.NodeKind.New().(*corev1.Node)
		node.Name = "node02"
		node.Status.Conditions = []corev1.NodeCondition{{Type: "TwillDataplaneWriteFailed", Status: corev1.ConditionTrue, Message: "nftables: no memory"}}
		if _, err := term.store.Create(t.Context(), node); err != nil {
			t.Fatal(err)
		}
		term.programmed(t, "node01", `{"networkpolicies.networking.k8s.io":3}`, 0)
		term.programmed(t, "node02", `{"networkpolicies.networking.k8s.io":2}`, 0)
		term.programmed(t, "node03", "", 0)
		wantText(t, term.output(nil, "apply", "-f", "-", "--wait=2s"), "networkpolicy.networking.k8s.io/deny unchanged\n"+
			"error: not in force on node node02 after 2s: it has programmed networkpolicies.networking.k8s.io up to revision 2, not yet 3; DataplaneWriteFailed: nftables: no memory\n"+
			"error: not in force on node node03 after 2s: its agent has not said what it has programmed: it has just started, or is older than this command\n[exit 1]\n")
	})
}

// TestDeleteWaits: the answer to a deletion has no revision, and it is not the
// object's last.
func TestDeleteWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerminal()
		term.output(nil, "create", "namespace", "a")
		term.stdin = waitPolicy
		term.output(nil, "apply", "-f", "-") // revision 3
		term.programmed(t, "node01", `{"networkpolicies.networking.k8s.io":4,"namespaces":4}`, 0)
		result := term.started(t, "delete", "ns", "a", "--wait") // 5 is the policy's deletion, 6 the namespace's
		term.programmed(t, "node01", `{"networkpolicies.networking.k8s.io":5,"namespaces":4}`, 0)
		time.Sleep(time.Second)
		term.programmed(t, "node01", `{"networkpolicies.networking.k8s.io":4,"namespaces":6}`, 0)
		time.Sleep(time.Second)
		term.programmed(t, "node01", `{"networkpolicies.networking.k8s.io":5,"namespaces":6}`, 0)
		wantText(t, result(), "networkpolicy.networking.k8s.io/deny deleted\nnamespace/a deleted\nin force on 1 node\n")
	})
}
