package load

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestParseTarget(t *testing.T) {
	for text, want := range map[string]Target{
		"http://nginx":             {HTTP, "nginx:80"},
		"http://nginx:8080/":       {HTTP, "nginx:8080"},
		"udp://10.0.0.1:53":        {UDP, "10.0.0.1:53"},
		"stream://[fd00::1]:8080":  {Stream, "[fd00::1]:8080"},
		"http://nginx.policy-demo": {HTTP, "nginx.policy-demo:80"},
	} {
		if got, err := ParseTarget(text); err != nil || got != want {
			t.Errorf("ParseTarget(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "nginx", "https://nginx", "http://", "http://nginx/page", "http://a b", "%"} {
		if got, err := ParseTarget(text); err == nil {
			t.Errorf("ParseTarget(%q) = %v, want an error", text, got)
		}
	}
}

// echo is a UDP echo server that forgets every datagram for which drop is true.
func echo(t *testing.T, drop func(n int64) bool) string {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close() })
	var count atomic.Int64
	go func() {
		buffer := make([]byte, 64)
		for {
			n, from, err := packets.ReadFrom(buffer)
			if err != nil {
				return
			}
			if !drop(count.Add(1)) {
				_, _ = packets.WriteTo(buffer[:n], from)
			}
		}
	}()
	return packets.LocalAddr().String()
}

func run(t *testing.T, target Target, rate int, d time.Duration) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	results, err := Run(ctx, []Target{target}, rate, Patience)
	if err != nil {
		t.Fatal(err)
	}
	r := results[0]
	if r.Answered+r.Lost != r.Sent {
		t.Errorf("%s: sums don't match", r)
	}
	return r
}

func TestAllAnswered(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	web := server.Listener.Addr().String()
	for _, target := range []Target{{HTTP, web}, {Stream, web}, {UDP, echo(t, func(int64) bool { return false })}} {
		r := run(t, target, 200, 500*time.Millisecond)
		if r.Lost != 0 || r.Sent < 20 || r.Sent > 110 || r.P50 <= 0 || r.P50 > r.P99 || r.P99 > r.Slowest {
			t.Errorf("%s", r)
		}
	}
}

func TestLossIsCounted(t *testing.T) {
	r := run(t, Target{UDP, echo(t, func(n int64) bool { return n%10 == 0 })}, 200, 500*time.Millisecond)
	if r.Lost == 0 || r.Lost != r.Sent/10 || !strings.Contains(r.String(), "no answer within 1s") {
		t.Errorf("every tenth is dropped: %s", r)
	}
}

// TestLateIsNotLost answers one request after more than a second, for which the
// others have to wait.
func TestLateIsNotLost(t *testing.T) {
	var count atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if count.Add(1) == 3 {
			<-time.After(late + 100*time.Millisecond)
		}
	}))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	results, err := Run(ctx, []Target{{Stream, server.Listener.Addr().String()}}, 20, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if r := results[0]; r.Lost != 0 || r.Late != 1 || r.Gap < late || r.Gap > r.Slowest+time.Second {
		t.Errorf("%s", r)
	}
}

func TestRefusedIsLost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r := run(t, Target{HTTP, l.Addr().String()}, 100, 200*time.Millisecond)
	if r.Answered != 0 || r.Reasons["refused"] != r.Sent {
		t.Errorf("nobody listens: %s", r)
	}
}

func TestBrokenStreamStaysBroken(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	time.AfterFunc(200*time.Millisecond, server.CloseClientConnections)
	r := run(t, Target{Stream, server.Listener.Addr().String()}, 100, 500*time.Millisecond)
	if r.Answered == 0 || r.Lost == 0 {
		t.Errorf("the server cut the connection half-way: %s", r)
	}
}

func TestRunRefuses(t *testing.T) {
	if _, err := Run(t.Context(), nil, 0, Patience); err == nil {
		t.Error("rate 0 is accepted")
	}
	if _, err := Run(t.Context(), []Target{{Stream, "127.0.0.1:1"}}, 1, Patience); err == nil {
		t.Error("a stream to nobody begins")
	}
}
