package nft

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

// 5,000 policies over 250 local pods in 50 groups, and 50,000 pods elsewhere, of
// which each policy allows ten, beside a block of addresses.
const (
	policies   = 5000
	podGroups  = 50
	localPods  = 250
	remotePods = 50000
)

func nthPolicy(i int) *networkingv1.NetworkPolicy {
	allow := func(key, value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	np := &networkingv1.NetworkPolicy{}
	np.Namespace, np.Name = "app", fmt.Sprintf("policy-%d", i)
	np.Spec.PodSelector = *allow("group", fmt.Sprint(i%podGroups))
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From: []networkingv1.NetworkPolicyPeer{
			{NamespaceSelector: &metav1.LabelSelector{}, PodSelector: allow("client", fmt.Sprint((i+i/policies)%policies))},
			{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("192.%d.%d.0/24", i>>7, i<<1&255)}},
		},
		Ports: []networkingv1.NetworkPolicyPort{{Port: &intstr.IntOrString{IntVal: 80}}},
	}}
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	return np
}

func remotePod(i int) *api.WorkloadEndpoint {
	w := &api.WorkloadEndpoint{}
	w.Namespace, w.Name = fmt.Sprintf("ns-%d", i%500), fmt.Sprintf("pod-%d", i)
	w.Labels = map[string]string{"client": fmt.Sprint(i % policies), "pod": fmt.Sprint(i)}
	w.Spec.Node, w.Spec.IPNetworks = "elsewhere", []string{nth(i).String() + "/32"}
	return w
}

func localPod(i int) plan.Local {
	return plan.Local{
		Pod: api.Key{Namespace: "app", Name: fmt.Sprintf("local-%d", i)}, HostInterface: fmt.Sprintf("tw-%d", i),
		Addrs:  []netip.Addr{netip.AddrFrom4([4]byte{10, 255, 0, byte(i)})},
		Labels: map[string]string{"group": fmt.Sprint(i % podGroups), "pod": fmt.Sprint(i)},
	}
}

func policyObjects() (objects []api.Object) {
	for i := range 500 {
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns-%d", i)}})
	}
	for i := range remotePods {
		objects = append(objects, remotePod(i))
	}
	for i := range policies {
		objects = append(objects, nthPolicy(i))
	}
	return objects
}

func tell(pl *plan.Planner, objects []api.Object) *plan.Plan {
	for _, o := range objects {
		pl.Put(o)
	}
	for i := range localPods {
		pl.SetLocal(localPod(i))
	}
	return pl.Flush()
}

// BenchmarkPolicies measures from the event to the kernel's answer.
func BenchmarkPolicies(b *testing.B) {
	b.Run("FirstSync", func(b *testing.B) {
		objects := policyObjects()
		for b.Loop() {
			b.StopTimer()
			k := open(b, testnet.New(b))
			b.StartTimer()
			p := tell(plan.NewPlanner("here"), objects)
			start := time.Now()
			b.ReportMetric(float64(apply(b, k, p)), "writes")
			b.ReportMetric(float64(time.Since(start).Milliseconds()), "kernel-ms")
		}
	})

	k, pl := open(b, testnet.New(b)), plan.NewPlanner("here")
	apply(b, k, tell(pl, policyObjects()))
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.Logf("heap %d MiB, obtained from the system %d MiB", m.HeapAlloc>>20, m.Sys>>20)
	// each reports the time and the writes of a change that is made and unmade in
	// turn.
	each := func(name string, change func(i int, back bool)) {
		b.Run(name, func(b *testing.B) {
			var times []time.Duration
			writes := 0
			for b.Loop() {
				start, n := time.Now(), len(times)
				change(n/2, n%2 == 1)
				writes += apply(b, k, pl.Flush())
				times = append(times, time.Since(start))
			}
			n := len(times)
			if n%2 == 1 {
				change(n/2, true)
				apply(b, k, pl.Flush())
			}
			slices.Sort(times)
			b.ReportMetric(float64(writes)/float64(n), "writes/op")
			b.ReportMetric(float64(times[n/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(times[n*99/100].Microseconds()), "p99-µs")
		})
	}
	each("Member", func(i int, back bool) {
		w := remotePod(remotePods + i%policies)
		if !back {
			pl.Put(w)
		} else {
			pl.Delete(api.WorkloadEndpointKind, api.KeyOf(w))
		}
	})
	each("Policy", func(i int, back bool) {
		np := nthPolicy(policies + i%policies)
		if !back {
			pl.Put(np)
		} else {
			pl.Delete(api.NetworkPolicyKind, api.KeyOf(np))
		}
	})
	// The policy selects its pods in a way that no other does.
	each("PolicyWithNewSelector", func(i int, back bool) {
		np := nthPolicy(policies + i%policies)
		np.Spec.PodSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "group", Operator: metav1.LabelSelectorOpIn, Values: []string{fmt.Sprint(i % podGroups), "none"}}}}
		if !back {
			pl.Put(np)
		} else {
			pl.Delete(api.NetworkPolicyKind, api.KeyOf(np))
		}
	})
	each("LocalPod", func(i int, back bool) {
		l := localPod(localPods + i%5)
		if !back {
			pl.SetLocal(l)
		} else {
			pl.DeleteLocal(l.HostInterface)
		}
	})
	b.Run("Restart", func(b *testing.B) {
		for b.Loop() {
			k.Resync()
			if n := apply(b, k, pl.Flush()); n != 0 {
				b.Fatalf("wrote %d objects", n)
			}
		}
	})
}
