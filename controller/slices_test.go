package controller

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
)

var epoch = time.Unix(0, 0)

func (c *cluster) slices() (out []*discoveryv1.EndpointSlice) {
	for _, obj := range c.list(api.EndpointSliceKind) {
		out = append(out, obj.(*discoveryv1.EndpointSlice))
	}
	return out
}

// wantSlices compares all slices, as text.
func (c *cluster) wantSlices(want ...string) {
	c.Helper()
	var got []string
	for _, es := range c.slices() {
		got = append(got, sliceText(es))
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		c.Error(diff)
	}
}

func TestSlices(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.control(single)
		c.create(svc("web"), wep("a", "web", 1), wep("b", "web", 2), wep("c", "other", 3))
		elsewhere := wep("d", "web", 4)
		elsewhere.Namespace = "elsewhere"
		c.create(elsewhere)
		c.settle()
		c.wantSlices("web IPv4 http/TCP/8080: 10.244.0.1 10.244.0.2")
		es := c.slices()[0]
		if !regexp.MustCompile(`^web-[0-9a-f]{5}$`).MatchString(es.Name) || es.Labels[discoveryv1.LabelManagedBy] != Manager {
			c.Errorf("%s %v", es.Name, es.Labels)
		}
		if e := es.Endpoints[0]; *e.NodeName != "node01" || e.TargetRef.Kind != "Pod" || e.TargetRef.Name != "a" || e.TargetRef.Namespace != "default" || !*e.Conditions.Serving {
			c.Errorf("endpoint %+v", e)
		}

		edit(c, wep("a", "", 0), func(w *api.WorkloadEndpoint) { w.Annotations = map[string]string{ReadyAnnotation: "false"} })
		edit(c, wep("b", "", 0), func(w *api.WorkloadEndpoint) { w.Annotations = map[string]string{TerminatingAnnotation: "true"} })
		edit(c, wep("c", "", 0), func(w *api.WorkloadEndpoint) { w.Labels["app"] = "web" })
		c.settle()
		c.wantSlices("web IPv4 http/TCP/8080: 10.244.0.1(!) 10.244.0.2(!)(~) 10.244.0.3")
		es = c.slices()[0]
		if *es.Endpoints[0].Conditions.Serving || !*es.Endpoints[1].Conditions.Serving {
			c.Error("serving: the terminating one does, the unready one does not")
		}
		edit(c, svc("web"), func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true })
		c.settle()
		c.wantSlices("web IPv4 http/TCP/8080: 10.244.0.1 10.244.0.2(~) 10.244.0.3")

		edit(c, svc("web"), func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "none"} })
		c.settle()
		c.wantSlices()
		edit(c, svc("web"), func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "web"} })
		c.remove(wep("a", "", 0))
		c.settle()
		c.wantSlices("web IPv4 http/TCP/8080: 10.244.0.2(~) 10.244.0.3")
		c.remove(svc("web"))
		c.settle()
		c.wantSlices()
	})
}

func TestSlicePortsAndFamilies(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.control(dual)
		other := wep("b", "web", 2)
		other.Spec.Ports = []api.WorkloadEndpointPort{{Name: "web", Protocol: "TCP", Port: 9090}, {Name: "metrics", Protocol: "TCP", Port: 99}}
		lacking := wep("c", "web", 3)
		lacking.Spec.Ports = []api.WorkloadEndpointPort{{Name: "web", Protocol: "UDP", Port: 8080}}
		only4 := wep("d", "web", 4)
		only4.Spec.IPNetworks = only4.Spec.IPNetworks[:1]
		rubbish := wep("e", "web", 5)
		rubbish.Spec.IPNetworks = []string{"rubbish"}
		c.create(wep("a", "web", 1), other, lacking, only4, rubbish, svc("web", policy("RequireDualStack"), ports(
			corev1.ServicePort{Name: "http", Port: 80, TargetPort: intstr.FromString("web")},
			corev1.ServicePort{Name: "metrics", Port: 81, TargetPort: intstr.FromString("metrics")},
		)))
		c.create(svc("bare", clusterIP("None"), ports(), func(s *corev1.ServiceSpec) { s.Selector = map[string]string{"app": "web"} }))
		c.settle()
		c.wantSlices(
			"web IPv4 http/TCP/8080: 10.244.0.1 10.244.0.4",
			"web IPv6 http/TCP/8080: fd00:244::1",
			"web IPv4 http/TCP/9090,metrics/TCP/99: 10.244.0.2",
			"web IPv6 http/TCP/9090,metrics/TCP/99: fd00:244::2",
			"bare IPv4 : 10.244.0.1 10.244.0.2 10.244.0.3 10.244.0.4",
		)
	})
}

func TestSlicesOfOthers(t *testing.T) {
	inCluster(t, func(c *cluster) {
		byHand := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "by-hand", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4,
		}
		c.create(byHand)
		stop := c.control(single)
		c.create(svc("web"), wep("a", "web", 1), svc("manual", func(s *corev1.ServiceSpec) { s.Selector = nil }))
		c.settle()
		var ours *discoveryv1.EndpointSlice
		for _, es := range c.slices() {
			if es.Name != "by-hand" {
				ours = es
			}
		}
		// Someone breaks ours: it is mended.
		edit(c, ours, func(es *discoveryv1.EndpointSlice) { es.Endpoints = nil })
		c.settle()
		if got := get(c, ours); len(got.Endpoints) != 1 {
			c.Errorf("a broken slice was left: %+v", got)
		}
		c.remove(ours)
		c.settle()
		get(c, ours)
		// Someone has the name that ours would get.
		c.remove(svc("web"))
		c.settle()
		stop()
		squatter := byHand.DeepCopy()
		squatter.Name = ours.Name
		c.create(squatter, svc("web"))
		c.control(single)
		if n := len(c.slices()); n != 3 {
			c.Errorf("%d slices", n)
		}
		c.remove(svc("web"))
		c.settle()
		for _, es := range c.slices() {
			if es.ResourceVersion != get(c, es).ResourceVersion || es.Generation != 1 {
				c.Errorf("%s was written", es.Name)
			}
		}
		if n := len(c.slices()); n != 2 {
			c.Errorf("%d slices are left of 2 by hand", n)
		}
	})
}

func TestSlicesAreSmallAndStable(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.create(svc("web"))
		for i := range 1000 {
			c.create(wep(fmt.Sprint("p", i), "web", i+1))
		}
		c.control(single)
		versions := map[string]string{}
		total := 0
		for _, es := range c.slices() {
			if len(es.Endpoints) > endpointsInSlice || len(es.Endpoints) == 0 {
				c.Errorf("%d endpoints in %s", len(es.Endpoints), es.Name)
			}
			total += len(es.Endpoints)
			versions[es.Name] = es.ResourceVersion
		}
		if total != 1000 || len(versions) > 32 {
			c.Errorf("%d endpoints in %d slices", total, len(versions))
		}
		changed := func() (n int) {
			for _, es := range c.slices() {
				if versions[es.Name] != es.ResourceVersion {
					n++
				}
				versions[es.Name] = es.ResourceVersion
			}
			return n
		}
		edit(c, wep("p500", "", 0), func(w *api.WorkloadEndpoint) { w.Spec.Node = "node02" })
		c.settle()
		if n := changed(); n != 1 {
			c.Errorf("one endpoint's change wrote %d slices", n)
		}
		edit(c, wep("p501", "", 0), func(w *api.WorkloadEndpoint) { w.Labels["tier"] = "front"; w.Spec.ContainerID = "x" })
		edit(c, svc("web"), func(s *corev1.Service) { s.Labels = map[string]string{"tier": "front"} })
		c.settle()
		if n := changed(); n != 0 {
			c.Errorf("changes that no slice shows wrote %d", n)
		}
	})
}

// world is what should be, by the simplest means.
type world struct {
	services  map[string]*corev1.Service
	endpoints map[string]*api.WorkloadEndpoint
}

// random makes a small world, so that most things meet.
func random(rng *rand.Rand) world {
	w := world{map[string]*corev1.Service{}, map[string]*api.WorkloadEndpoint{}}
	for i := range 6 {
		s := svc(fmt.Sprint("s", i))
		s.Spec.Selector = map[string]string{"app": fmt.Sprint(rng.IntN(3))}
		if rng.IntN(2) == 0 {
			s.Spec.Selector["tier"] = fmt.Sprint(rng.IntN(2))
		}
		if rng.IntN(3) == 0 {
			s.Spec.Ports[0].TargetPort = intstr.FromString("web")
		}
		if rng.IntN(3) == 0 {
			policy("PreferDualStack")(&s.Spec)
		}
		w.services[s.Name] = s
	}
	for i := range 150 {
		e := wep(fmt.Sprint("p", i), fmt.Sprint(rng.IntN(3)), i+1)
		e.Labels["tier"] = fmt.Sprint(rng.IntN(2))
		e.Spec.Ports[0].Port = int32(8080 + rng.IntN(2))
		if rng.IntN(8) == 0 {
			e.Annotations = map[string]string{ReadyAnnotation: "false"}
		}
		w.endpoints[e.Name] = e
	}
	return w
}

// lines says for each service, family and endpoint what a slice must hold.
func (w world) lines() (out []string) {
	for _, s := range w.services {
		for _, e := range w.endpoints {
			if !matches(s.Spec.Selector, e.Labels) {
				continue
			}
			port := int32(8080)
			if s.Spec.Ports[0].TargetPort.Type == intstr.String {
				port = e.Spec.Ports[0].Port
			}
			for i, network := range e.Spec.IPNetworks {
				if i == 0 || s.Spec.IPFamilyPolicy != nil {
					address, _, _ := strings.Cut(network, "/")
					out = append(out, fmt.Sprint(s.Name, " ", port, " ", address, " ", e.Annotations[ReadyAnnotation] != "false"))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

func (c *cluster) lines() (out []string) {
	for _, es := range c.slices() {
		for _, e := range es.Endpoints {
			out = append(out, fmt.Sprint(es.Labels[discoveryv1.LabelServiceName], " ", *es.Ports[0].Port, " ", e.Addresses[0], " ", *e.Conditions.Ready))
		}
	}
	slices.Sort(out)
	return out
}

// TestOrderDoesNotMatter comes to the same world by different ways, with detours
// and faults, and wants the same slices down to their names.
func TestOrderDoesNotMatter(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := random(rand.New(rand.NewPCG(seed, 0)))
			var first []string
			for way := range uint64(3) {
				inCluster(t, func(c *cluster) {
					c.travel(w, rand.New(rand.NewPCG(seed, way+1)))
					if diff := cmp.Diff(w.lines(), c.lines()); diff != "" {
						c.Fatalf("way %d: %s", way, diff)
					}
					var got []string
					for _, es := range c.slices() {
						got = append(got, es.Name+" "+sliceText(es))
					}
					if first == nil {
						first = got
					}
					if diff := cmp.Diff(first, got); diff != "" {
						c.Errorf("way %d: %s", way, diff)
					}
				})
			}
		})
	}
}

// travel creates the world in a random order while a controller runs.
func (c *cluster) travel(w world, rng *rand.Rand) {
	var objects []api.Object
	for _, s := range w.services {
		objects = append(objects, s)
	}
	for _, e := range w.endpoints {
		objects = append(objects, e)
	}
	slices.SortFunc(objects, func(a, b api.Object) int { return strings.Compare(a.GetName(), b.GetName()) })
	rng.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
	stop := c.control(dual)
	for i, obj := range objects {
		switch rng.IntN(12) {
		case 0: // another one first
			wrong := obj.DeepCopyObject().(api.Object)
			wrong.SetLabels(map[string]string{"app": "0", "tier": "1"})
			c.create(wrong)
			if rng.IntN(2) == 0 {
				c.settle()
			}
			c.remove(wrong)
		case 1:
			c.BreakWatches()
		case 2:
			c.Compact()
		case 3:
			if rng.IntN(4) == 0 {
				c.SetDown(true)
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
				c.SetDown(false)
			}
		case 4:
			if i%3 == 0 {
				stop()
				stop = c.control(dual)
			}
		case 5:
			c.create(wep(fmt.Sprint("extra", i), "0", 1000+i))
			defer c.settle()
			defer c.remove(wep(fmt.Sprint("extra", i), "", 0))
		}
		c.create(obj)
	}
	c.settle()
}

// BenchmarkPodEvent is one pod's change in a cluster of 10,000 services and
// 50,000 pods, without the writes.
func BenchmarkPodEvent(b *testing.B) {
	s := newState()
	r := &reconciler{Controller: New(nil, single), state: s}
	for i := range 10000 {
		s.putService(svc(fmt.Sprint("s", i)))
	}
	for i := range 50000 {
		s.putEndpoint(wep(fmt.Sprint("p", i), fmt.Sprint("s", i%10000), i))
	}
	for i := 0; b.Loop(); i++ {
		w := wep(fmt.Sprint("p", i%50000), fmt.Sprint("s", i%10000), i)
		w.Spec.Node = fmt.Sprint("node", i)
		for _, key := range s.putEndpoint(w) {
			r.compareSlices(key)
		}
	}
}
