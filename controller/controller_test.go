package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

var single = Config{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}

var dual = Config{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/112")}}

// cluster is a store and the controllers that run on it, in a bubble of fake
// time.
type cluster struct {
	*testing.T
	*memory.Store
	log logBuffer
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func inCluster(t *testing.T, test func(c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{T: t, Store: memory.New()}
		test(c)
		if t.Failed() {
			t.Log(c.log.buf.String())
		}
	})
}

// control starts a controller and returns how to stop it.
func (c *cluster) control(config Config) (stop func()) {
	config.Logger = slog.New(slog.NewTextHandler(&c.log, nil))
	ctx, cancel := context.WithCancel(c.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := New(c.Store, config).Run(ctx); err != nil {
			c.Error(err)
		}
	}()
	c.settle()
	return func() { cancel(); <-done }
}

// settle lets the controllers do all that they have to, retries included.
func (c *cluster) settle() {
	time.Sleep(30 * time.Second)
	synctest.Wait()
}

func (c *cluster) create(objects ...api.Object) {
	c.Helper()
	for _, obj := range objects {
		if _, err := c.Create(c.Context(), obj); err != nil {
			c.Fatal(err)
		}
	}
}

func (c *cluster) remove(objects ...api.Object) {
	c.Helper()
	for _, obj := range objects {
		if err := c.Delete(c.Context(), api.KindOf(obj), api.KeyOf(obj), ""); err != nil {
			c.Fatal(err)
		}
	}
}

func get[T api.Object](c *cluster, obj T) T {
	c.Helper()
	out, err := c.Get(c.Context(), api.KindOf(obj), api.KeyOf(obj))
	if err != nil {
		c.Fatal(err)
	}
	return out.(T)
}

// edit changes an object, against the controllers' writes if need be.
func edit[T api.Object](c *cluster, obj T, change func(T)) {
	c.Helper()
	for {
		current := get(c, obj)
		change(current)
		if _, err := c.Update(c.Context(), current); err == nil {
			return
		} else if !errors.Is(err, store.ErrConflict) {
			c.Fatal(err)
		}
	}
}

func (c *cluster) list(kind *api.Kind) []api.Object {
	c.Helper()
	list, err := c.List(c.Context(), kind, "")
	if err != nil {
		c.Fatal(err)
	}
	return list.Items
}

// revision changes with every write.
func (c *cluster) revision() string {
	c.Helper()
	list, err := c.List(c.Context(), api.NodeKind, "")
	if err != nil {
		c.Fatal(err)
	}
	return list.Revision
}

func svc(name string, change ...func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	for _, f := range change {
		f(&s.Spec)
	}
	api.Default(s)
	return s
}

// wep is a pod with the address 10.244.0.n and fd00:244::n, labelled app=….
func wep(name, app string, n int) *api.WorkloadEndpoint {
	w := &api.WorkloadEndpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": app}},
		Spec: api.WorkloadEndpointSpec{
			Node:       "node01",
			Pod:        name,
			IPNetworks: []string{fmt.Sprintf("10.244.%d.%d/32", n>>8, n&255), fmt.Sprintf("fd00:244::%x/128", n)},
			Ports:      []api.WorkloadEndpointPort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 8080}},
		},
	}
	return w
}

func TestRunRefuses(t *testing.T) {
	for want, config := range map[string]Config{
		"no range":       {ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/16")}},
		"too small":      {ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/30")}},
		"both IPv4":      {ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}},
		"range of ports": {NodePortRange: [2]int{32767, 30000}},
	} {
		if err := New(memory.New(), config).Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", config, err, want)
		}
	}
}

func TestNamespaces(t *testing.T) {
	inCluster(t, func(c *cluster) {
		own := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "own", Labels: map[string]string{"team": "a"}}}
		c.create(own)
		c.control(single)
		for _, name := range []string{"default", "kube-system", "own"} {
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
			if got := get(c, ns).Labels[corev1.LabelMetadataName]; got != name {
				c.Errorf("namespace %s is labelled %q", name, got)
			}
		}
		if get(c, own).Labels["team"] != "a" {
			c.Error("a label was lost")
		}
		c.remove(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, own)
		c.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "later"}})
		c.settle()
		var names []string
		for _, obj := range c.list(api.NamespaceKind) {
			names = append(names, obj.GetName()+"="+obj.GetLabels()[corev1.LabelMetadataName])
		}
		if got := strings.Join(names, " "); got != "default=default kube-system=kube-system later=later" {
			c.Error(got)
		}
	})
}

func block(name, node string) *api.IPAMBlock {
	return &api.IPAMBlock{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: api.IPAMBlockSpec{CIDR: "10.244.0.0/26", Affinity: affinityPrefix + node}}
}

func node(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }

func TestDeletedNode(t *testing.T) {
	inCluster(t, func(c *cluster) {
		web := svc("web")
		stays := wep("stays", "web", 2)
		stays.Spec.Node = "node02"
		c.create(node("node01"), node("node02"), block("b1", "node01"), block("b2", "node02"), web, wep("goes", "web", 1), stays)
		// An endpoint of a node that never was is nobody's remains.
		free := wep("free", "other", 3)
		free.Spec.Node = ""
		c.create(free)
		c.control(single)
		c.remove(node("node01"))
		c.settle()
		if got := len(c.list(api.IPAMBlockKind)); got != 1 {
			c.Errorf("%d blocks are left", got)
		}
		if got := len(c.list(api.WorkloadEndpointKind)); got != 2 {
			c.Errorf("%d endpoints are left", got)
		}
		c.wantSlices("web IPv4 http/TCP/8080: 10.244.0.2")
	})
}

func TestDeletedNodeComesBack(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.create(node("node01"), block("b1", "node01"))
		c.control(single)
		c.SetDown(true) // the controller hears of both at once
		c.settle()
		c.SetDown(false)
		c.remove(node("node01"))
		c.create(node("node01"))
		c.settle()
		if got := len(c.list(api.IPAMBlockKind)); got != 1 {
			c.Error("the block of a node that is there was deleted")
		}
	})
}

// TestNodeThatJoinedAfterABackup has a node publish its block a little before its
// object, when the store was put back.
func TestNodeThatJoinedAfterABackup(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.control(single)
		backup := c.Backup()
		c.create(node("node01"), block("b1", "node01"))
		c.settle()
		c.Restore(backup)
		c.create(block("b1", "node01"))
		time.Sleep(store.RestoreGrace / 2)
		c.create(node("node01"))
		c.settle()
		time.Sleep(store.RestoreGrace)
		if got := len(c.list(api.IPAMBlockKind)); got != 1 {
			c.Error("the block of a node that published itself again was deleted")
		}
	})
}

func TestNodeDeletedWhileNobodyActed(t *testing.T) {
	inCluster(t, func(c *cluster) {
		odd := block("odd", "a/b")
		c.create(node("node02"), block("b1", "node01"), block("b2", "node02"), wep("goes", "web", 1), odd)
		c.control(single)
		if got := len(c.list(api.IPAMBlockKind)); got != 2 {
			c.Errorf("%d blocks are left", got)
		}
		if got := len(c.list(api.WorkloadEndpointKind)); got != 0 {
			c.Errorf("%d endpoints are left", got)
		}
	})
}

func TestOneOfTwoActs(t *testing.T) {
	inCluster(t, func(c *cluster) {
		stop := c.control(single)
		c.control(single)
		c.create(svc("one"))
		c.settle()
		if n := c.log.count("acts now"); n != 1 {
			c.Errorf("%d act", n)
		}
		c.Depose(electionName)
		c.settle()
		if n := c.log.count("acts now"); n != 2 {
			c.Errorf("%d acted in turn", n)
		}
		stop()
		c.create(svc("two"))
		c.settle()
		if get(c, svc("two")).Spec.ClusterIP == "" {
			c.Error("nobody acts")
		}
	})
}

func TestOutage(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.SetDown(true)
		c.control(single)
		c.SetDown(false)
		c.create(svc("web"), wep("a", "web", 1), wep("b", "web", 2))
		c.settle()
		c.wantSlices("web IPv4 http/TCP/8080: 10.244.0.1 10.244.0.2")
		before := c.revision()
		c.SetDown(true)
		c.settle()
		c.SetDown(false)
		c.settle()
		if after := c.revision(); after != before {
			c.Errorf("an outage led to writes: revision %s, then %s", before, after)
		}
		if n := c.log.count("level=ERROR"); n != 0 {
			c.Errorf("%d errors were logged", n)
		}
	})
}

// sliceText is "service family ports: addresses", with (!) at those that are not
// ready and (~) at those that terminate.
func sliceText(es *discoveryv1.EndpointSlice) string {
	var words []string
	for _, p := range es.Ports {
		words = append(words, fmt.Sprintf("%s/%s/%d", *p.Name, *p.Protocol, *p.Port))
	}
	text := fmt.Sprintf("%s %s %s:", es.Labels[discoveryv1.LabelServiceName], es.AddressType, strings.Join(words, ","))
	for _, e := range es.Endpoints {
		text += " " + e.Addresses[0]
		if !*e.Conditions.Ready {
			text += "(!)"
		}
		if *e.Conditions.Terminating {
			text += "(~)"
		}
	}
	return text
}
