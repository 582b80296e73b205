package nameserver

import (
	"net"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// listener is a client that hears one answer.
type listener struct {
	dns.ResponseWriter
	from   net.Addr
	answer *dns.Msg
}

func (l *listener) RemoteAddr() net.Addr { return l.from }

func (l *listener) WriteMsg(m *dns.Msg) error { l.answer = m; return nil }

// FuzzQuery takes packets as they come from a pod: each that is a query gets one
// answer, which fits what the client takes.
func FuzzQuery(f *testing.F) {
	z := NewZone("cluster.local")
	z.putService(service("shop", "web", corev1.ServiceSpec{ClusterIP: "10.1.0.7", ClusterIPs: []string{"10.1.0.7", "fd00::7"}}))
	z.putService(service("shop", "db", corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}))
	z.putService(service("shop", "far", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}))
	var many []discoveryv1.Endpoint
	for i := range 100 {
		many = append(many, discoveryv1.Endpoint{Addresses: []string{net.IPv4(10, 244, 0, byte(i)).String()}})
	}
	z.putSlice(slice("shop", "db-1", "db", many...))
	for _, name := range []string{"web.shop.svc.cluster.local.", "db.shop.svc.cluster.local.", "x.db.shop.svc.cluster.local.", "far.shop.svc.cluster.local.", "example.org.", "."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeANY} {
			query := new(dns.Msg).SetQuestion(name, qtype)
			if qtype == dns.TypeAAAA {
				query.SetEdns0(4096, true)
			}
			packet, err := query.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packet)
		}
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		query := new(dns.Msg)
		if query.Unpack(packet) != nil {
			return // the library answers that
		}
		for _, from := range []net.Addr{&net.UDPAddr{}, &net.TCPAddr{}} {
			l := &listener{from: from}
			z.ServeDNS(l, query.Copy())
			if l.answer == nil || !l.answer.Response || l.answer.Id != query.Id {
				t.Fatalf("%s gets %s", query, l.answer)
			}
			size := dns.MaxMsgSize
			if _, ok := from.(*net.UDPAddr); ok {
				size = dns.MinMsgSize
				if edns := query.IsEdns0(); edns != nil {
					size = max(size, int(edns.UDPSize()))
				}
			}
			text, err := l.answer.Pack()
			if err != nil || len(text) > size {
				t.Errorf("%s gets %d bytes of %d, %v: %s", query, len(text), size, err, l.answer)
			}
		}
	})
}
