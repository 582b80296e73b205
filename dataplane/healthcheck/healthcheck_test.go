package healthcheck

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/plan"
)

var check = netip.MustParseAddrPort("127.0.0.1:32000")

// ask asks in the test's namespace, by a connection of its own.
func ask(t *testing.T, ns *testnet.NS, at string) (status int, weight, body string, err error) {
	t.Helper()
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		ns.Do(func() { conn, err = new(net.Dialer).DialContext(ctx, network, address) })
		return conn, err
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	r, err := client.Get("http://" + at + "/healthz")
	if err != nil {
		return 0, "", "", err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	return r.StatusCode, r.Header.Get("X-Load-Balancing-Endpoint-Weight"), strings.TrimSpace(string(text)), err
}

func TestAnswers(t *testing.T) {
	ns := testnet.New(t)
	s, p := New(slog.New(slog.DiscardHandler)), plan.New()
	t.Cleanup(s.Close)
	apply := func(want int) {
		t.Helper()
		ns.Do(func() {
			if n, err := s.Apply(p); err != nil || n != want || p.HealthChecks.DirtyLen() != 0 {
				t.Fatalf("%d changes, %v, %d dirty; want %d changes", n, err, p.HealthChecks.DirtyLen(), want)
			}
		})
	}
	web := api.Key{Namespace: "shop", Name: "web"}
	p.HealthChecks.Set(check, plan.HealthCheck{Service: web, LocalEndpoints: 2})
	apply(1)
	apply(0)
	for _, c := range []struct {
		endpoints, status int
		weight, body      string
	}{
		{2, 200, "2", `{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}`},
		{0, 503, "0", `{"service":{"namespace":"shop","name":"web"},"localEndpoints":0,"serviceProxyHealthy":true}`},
	} {
		p.HealthChecks.Set(check, plan.HealthCheck{Service: web, LocalEndpoints: c.endpoints})
		apply(0)
		status, weight, body, err := ask(t, ns, check.String())
		if err != nil || status != c.status || weight != c.weight || body != c.body {
			t.Errorf("with %d endpoints: %d %q %s, %v", c.endpoints, status, weight, body, err)
		}
	}
	p.HealthChecks.Delete(check)
	apply(1)
	if status, _, _, err := ask(t, ns, check.String()); err == nil {
		t.Errorf("the service is gone, and its port answers %d", status)
	}
}

func TestPortThatIsTaken(t *testing.T) {
	ns := testnet.New(t)
	s, p := New(slog.New(slog.DiscardHandler)), plan.New()
	t.Cleanup(s.Close)
	ns.Do(func() {
		other, err := net.Listen("tcp", ":32000")
		if err != nil {
			t.Fatal(err)
		}
		p.HealthChecks.Set(check, plan.HealthCheck{Service: api.Key{Namespace: "shop", Name: "web"}})
		const want = "healthCheckNodePort 32000 of service shop/web: listen tcp 127.0.0.1:32000: bind: address already in use: end what listens there, or give the service another port"
		if _, err := s.Apply(p); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		other.Close()
		if n, err := s.Apply(p); n != 1 || err != nil || p.HealthChecks.DirtyLen() != 0 {
			t.Errorf("once the port is free: %d, %v", n, err)
		}
	})
}

// TestEachAddressAnswersForItself: the families of a Service have endpoints of their
// own, and an address that no device has yet is listened at all the same.
func TestEachAddressAnswersForItself(t *testing.T) {
	ns := testnet.New(t)
	s, p := New(slog.New(slog.DiscardHandler)), plan.New()
	t.Cleanup(s.Close)
	web := api.Key{Namespace: "shop", Name: "web"}
	four, six := netip.MustParseAddrPort("192.0.2.1:32000"), netip.MustParseAddrPort("[2001:db8::1]:32000")
	p.HealthChecks.Set(four, plan.HealthCheck{Service: web, LocalEndpoints: 0})
	p.HealthChecks.Set(six, plan.HealthCheck{Service: web, LocalEndpoints: 2})
	ns.Do(func() {
		if n, err := s.Apply(p); n != 2 || err != nil {
			t.Fatalf("%d changes, %v", n, err)
		}
	})
	ns.Sysctl(t, "ipv6/conf/lo/accept_dad", "0")
	ns.Address(t, "lo", "192.0.2.1/32")
	ns.Address(t, "lo", "2001:db8::1/128")
	for at, want := range map[string]int{four.String(): http.StatusServiceUnavailable, six.String(): http.StatusOK} {
		if status, _, body, err := ask(t, ns, at); status != want || err != nil {
			t.Errorf("%s: %d %s, %v; want %d", at, status, body, err, want)
		}
	}
	if status, _, _, err := ask(t, ns, "127.0.0.1:32000"); err == nil {
		t.Errorf("an address that is no node port's answers %d", status)
	}
}
