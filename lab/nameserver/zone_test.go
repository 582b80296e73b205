package nameserver

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

func service(ns, name string, spec corev1.ServiceSpec) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: spec}
}

func slice(ns, name, svc string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: svc}},
		Endpoints:  endpoints,
	}
}

// ask returns the answer as text: the response code and then each record's
// data.
func ask(z *Zone, name string, qtype uint16) string {
	rrs, code := z.Answer(dns.Question{Name: name, Qtype: qtype, Qclass: dns.ClassINET})
	words := []string{dns.RcodeToString[code]}
	for _, rr := range rrs {
		words = append(words, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(words, " ")
}

func TestAnswer(t *testing.T) {
	z := NewZone("cluster.local")
	z.putService(service("shop", "web", corev1.ServiceSpec{ClusterIP: "10.1.0.7", ClusterIPs: []string{"10.1.0.7", "fd00::7"}}))
	z.putService(service("shop", "old", corev1.ServiceSpec{ClusterIP: "10.1.0.8"}))
	z.putService(service("shop", "db", corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}))
	z.putService(service("shop", "all", corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, PublishNotReadyAddresses: true}))
	z.putService(service("shop", "far", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}))
	ready, notReady, host := true, false, "db-0"
	endpoints := []discoveryv1.Endpoint{
		{Addresses: []string{"10.244.0.6"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}},
		{Addresses: []string{"10.244.0.5"}, Hostname: &host},
		{Addresses: []string{"10.244.0.9"}, Conditions: discoveryv1.EndpointConditions{Ready: &notReady}},
	}
	z.putSlice(slice("shop", "db-1", "db", endpoints...))
	z.putSlice(slice("shop", "all-1", "all", endpoints...))

	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"web.shop.svc.cluster.local.", dns.TypeA, "NOERROR 10.1.0.7"},
		{"WEB.Shop.svc.CLUSTER.local.", dns.TypeA, "NOERROR 10.1.0.7"},
		{"web.shop.svc.cluster.local.", dns.TypeAAAA, "NOERROR fd00::7"},
		{"web.shop.svc.cluster.local.", dns.TypeTXT, "NOERROR"},
		{"old.shop.svc.cluster.local.", dns.TypeA, "NOERROR 10.1.0.8"},
		{"old.shop.svc.cluster.local.", dns.TypeAAAA, "NOERROR"},
		{"db.shop.svc.cluster.local.", dns.TypeA, "NOERROR 10.244.0.5 10.244.0.6"},
		{"db-0.db.shop.svc.cluster.local.", dns.TypeA, "NOERROR 10.244.0.5"},
		{"db-1.db.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"x.web.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"all.shop.svc.cluster.local.", dns.TypeA, "NOERROR 10.244.0.5 10.244.0.6 10.244.0.9"},
		{"far.shop.svc.cluster.local.", dns.TypeA, "NOERROR example.org."},
		{"none.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"web.other.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"shop.svc.cluster.local.", dns.TypeA, "NOERROR"},
		{"other.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"svc.cluster.local.", dns.TypeA, "NOERROR"},
		{"cluster.local.", dns.TypeA, "NOERROR"},
		{"example.org.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"example.org.", dns.TypeA, "REFUSED"},
		{"notcluster.local.", dns.TypeA, "REFUSED"},
		{".", dns.TypeNS, "REFUSED"},
	} {
		if got := ask(z, c.name, c.qtype); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.name, dns.TypeToString[c.qtype], got, c.want)
		}
	}

	z.deleteSlice(api.Key{Namespace: "shop", Name: "db-1"})
	if got := ask(z, "db.shop.svc.cluster.local.", dns.TypeA); got != "NOERROR" {
		t.Errorf("after its slice was deleted, db is %s", got)
	}
	for _, name := range []string{"web", "old", "db", "all", "far"} {
		z.deleteService(api.Key{Namespace: "shop", Name: name})
	}
	if got := ask(z, "shop.svc.cluster.local.", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("namespace without services: %s", got)
	}
}

// TestServe asks over real sockets of loopback, from store to answer.
func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var s store.Store = memory.New()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := net.Listen("tcp", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	z := NewZone("cluster.local")
	done := make(chan struct{}, 2)
	go func() { z.Follow(ctx, s); done <- struct{}{} }()
	go func() { z.Serve(ctx, packets, stream, slog.New(slog.DiscardHandler)); done <- struct{}{} }()
	t.Cleanup(func() { cancel(); <-done; <-done; s.Close() })

	if _, err := s.Create(ctx, service("shop", "db", corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone})); err != nil {
		t.Fatal(err)
	}
	var many []discoveryv1.Endpoint
	for i := range 100 {
		many = append(many, discoveryv1.Endpoint{Addresses: []string{net.IPv4(10, 244, 0, byte(i)).String()}})
	}
	if _, err := s.Create(ctx, slice("shop", "db-1", "db", many...)); err != nil {
		t.Fatal(err)
	}

	query := new(dns.Msg).SetQuestion("db.shop.svc.cluster.local.", dns.TypeA)
	deadline := time.Now().Add(5 * time.Second)
	for {
		reply, _, err := (&dns.Client{Net: "tcp"}).Exchange(query, packets.LocalAddr().String())
		if err == nil && len(reply.Answer) == len(many) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("over TCP: %v, %v", reply, err)
		}
	}
	reply, _, err := new(dns.Client).Exchange(query, packets.LocalAddr().String())
	if err != nil || !reply.Truncated {
		t.Errorf("100 addresses over UDP without EDNS are not truncated: %v, %v", reply, err)
	}
	query.SetQuestion("none.shop.svc.cluster.local.", dns.TypeA)
	reply, _, err = new(dns.Client).Exchange(query, packets.LocalAddr().String())
	if err != nil || reply.Rcode != dns.RcodeNameError || len(reply.Ns) != 1 {
		t.Errorf("absent name: %v, %v", reply, err)
	}
}
