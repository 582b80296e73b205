package kube

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
)

func examplePod() *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "cart-0", UID: "u-1", ResourceVersion: "7", Labels: map[string]string{"app": "cart"},
			Annotations: map[string]string{"long": strings.Repeat("x", 1000)},
		},
		Spec: corev1.PodSpec{
			NodeName: "node01",
			Containers: []corev1.Container{{
				Ports: []corev1.ContainerPort{
					{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP},
					{ContainerPort: 9090, Protocol: corev1.ProtocolTCP}, // without a name nobody can mean it
					{ContainerPort: 53, HostPort: 5353, HostIP: "192.0.2.1", Protocol: corev1.ProtocolUDP},
				},
			}},
			InitContainers: []corev1.Container{
				{Ports: []corev1.ContainerPort{{Name: "setup", ContainerPort: 1, Protocol: corev1.ProtocolTCP}}},
				{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "proxy", ContainerPort: 15001, Protocol: corev1.ProtocolTCP}}},
			},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.244.1.5",
			PodIPs: []corev1.PodIP{{IP: "10.244.1.5"}, {IP: "fd00:10:244::5"}},
		},
	}
}

func decodeExample(t *testing.T, p *corev1.Pod) *api.WorkloadEndpoint {
	t.Helper()
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	obj, err := decode(api.WorkloadEndpointKind, raw)
	if err != nil {
		t.Fatal(err)
	}
	if obj == nil {
		return nil
	}
	return obj.(*api.WorkloadEndpoint)
}

func TestPodIsEndpoint(t *testing.T) {
	want := api.WorkloadEndpointKind.New().(*api.WorkloadEndpoint)
	want.Namespace, want.Name, want.UID, want.ResourceVersion = "shop", "cart-0", "u-1", "7"
	want.Labels = map[string]string{"app": "cart"}
	want.Spec = api.WorkloadEndpointSpec{
		Node: "node01", Pod: "cart-0", IPNetworks: []string{"10.244.1.5/32", "fd00:10:244::5/128"},
		Ports: []api.WorkloadEndpointPort{
			{Name: "http", Protocol: corev1.ProtocolTCP, Port: 8080},
			{Protocol: corev1.ProtocolUDP, Port: 53, HostPort: 5353, HostIP: "192.0.2.1"},
			{Name: "proxy", Protocol: corev1.ProtocolTCP, Port: 15001},
		},
	}
	got := decodeExample(t, examplePod())
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if errs := api.Validate(got); len(errs) > 0 {
		t.Error(errs)
	}
}

func TestPodsWithoutEndpoint(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"host network": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"succeeded":    func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"failed":       func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
	} {
		p := examplePod()
		change(p)
		if w := decodeExample(t, p); w != nil {
			t.Errorf("%s: %+v", name, w)
		}
	}
	starting := examplePod()
	starting.Status = corev1.PodStatus{Phase: corev1.PodPending}
	if w := decodeExample(t, starting); w == nil || len(w.Spec.IPNetworks) != 0 || w.Labels["app"] != "cart" {
		t.Errorf("a pod that is being started: %+v", w)
	}
}

func TestOneAddressOfAnOldKubelet(t *testing.T) {
	p := examplePod()
	p.Status.PodIPs = nil
	if got := decodeExample(t, p).Spec.IPNetworks; !cmp.Equal(got, []string{"10.244.1.5/32"}) {
		t.Error(got)
	}
}

// node is one as the kubelet writes it.
func node() *corev1.Node {
	n := api.NodeKind.New().(*corev1.Node)
	n.Name, n.ResourceVersion = "node01", "7"
	n.Annotations = map[string]string{"node.alpha.kubernetes.io/ttl": "0"}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	n.Status.Conditions = []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue},
		{Type: api.ConditionPrefix + "PoolExhausted", Status: corev1.ConditionTrue},
	}
	return n
}

func TestNodePatchesLeaveTheKubeletAlone(t *testing.T) {
	old, next := node(), node()
	next.Annotations[api.ReceivesAnnotation] = "{}"
	next.Status.Addresses = nil
	next.Status.Conditions = []corev1.NodeCondition{old.Status.Conditions[0], {Type: api.ConditionPrefix + "NotSynced", Status: corev1.ConditionTrue}}
	patches, err := patchesOf(api.NodeKind, old, next)
	if err != nil || len(patches) != 2 {
		t.Fatalf("%v, %v", patches, err)
	}
	for i, want := range []string{
		`{"metadata":{"annotations":{"twill.io/receives":"{}"}}}`,
		`{"status":{"conditions":[` +
			`{"type":"TwillNotSynced","status":"True","lastHeartbeatTime":null,"lastTransitionTime":null},` +
			`{"$patch":"delete","type":"TwillPoolExhausted"}]}}`,
	} {
		got, err := patches[i].encode(old.ResourceVersion)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("patch of %q: %s", patches[i].subresource, diff)
		}
	}
}

func TestPatchNamesVersion(t *testing.T) {
	old := api.IPPoolKind.New().(*api.IPPool)
	old.Name, old.UID, old.Spec.CIDR, old.Spec.NodeSelector = "pool", "u", "10.244.0.0/16", "all()"
	old.Annotations = map[string]string{"a": "1"}
	next := old.DeepCopyObject().(*api.IPPool)
	next.UID, next.Annotations, next.Spec.NodeSelector, next.Spec.NATOutgoing = "other", nil, "", true
	patches, err := patchesOf(api.IPPoolKind, old, next)
	if err != nil || len(patches) != 1 {
		t.Fatalf("%v, %v", patches, err)
	}
	got, err := patches[0].encode("7")
	if err != nil {
		t.Fatal(err)
	}
	want := `{"metadata":{"annotations":null,"resourceVersion":"7"},"spec":{"natOutgoing":true,"nodeSelector":null}}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	same, err := patchesOf(api.IPPoolKind, old, old.DeepCopyObject().(api.Object))
	if err != nil || len(same) != 0 {
		t.Errorf("of no change: %v, %v", same, err)
	}
}

func TestTrim(t *testing.T) {
	n := node()
	n.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
	n.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: "{}"}
	n.Status.Images = make([]corev1.ContainerImage, 50)
	raw, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	obj, err := decode(api.NodeKind, raw)
	if err != nil {
		t.Fatal(err)
	}
	got := obj.(*corev1.Node)
	if got.ManagedFields != nil || got.Annotations != nil || got.Status.Images != nil || len(got.Status.Conditions) != 2 {
		t.Errorf("%+v", got)
	}
}
