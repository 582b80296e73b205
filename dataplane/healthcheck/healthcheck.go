// Package healthcheck answers load balancers that ask, on a Service's
// healthCheckNodePort, whether this node has endpoints of it: with external
// traffic policy Local a node without any must get none of its traffic.
//
// It never decides which Services those are and how many endpoints they have:
// the plan says it.
package healthcheck

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/plan"
)

// Server answers at the addresses of a plan, in the network namespace in which Apply
// is called. Apply and Close are for one goroutine.
type Server struct {
	log     *slog.Logger
	answers map[netip.AddrPort]*answer
}

// New returns a server that answers nowhere yet.
func New(log *slog.Logger) *Server { return &Server{log: log, answers: map[netip.AddrPort]*answer{}} }

// answer is one listener's.
type answer struct {
	server *http.Server
	check  atomic.Pointer[plan.HealthCheck]
}

// Apply makes the plan's dirty health checks true and marks them clean; it says
// how many listeners it opened or closed. One that can't be opened stays dirty.
func (s *Server) Apply(p *plan.Plan) (changes int, err error) {
	if p.HealthChecks.DirtyLen() == 0 {
		return 0, nil
	}
	var errs []error
	for at := range p.HealthChecks.Dirty() {
		check, want := p.HealthChecks.Get(at)
		a := s.answers[at]
		switch {
		case want && a == nil:
			if a, err = s.open(at, check); err != nil {
				errs = append(errs, fmt.Errorf("healthCheckNodePort %d of service %s: %w: end what listens there, or give the service another port", at.Port(), check.Service, err))
				continue
			}
			s.answers[at] = a
			changes++
		case want:
			a.check.Store(&check)
		case a != nil:
			a.server.Close()
			delete(s.answers, at)
			changes++
		}
		p.HealthChecks.MarkClean(at)
	}
	return changes, errors.Join(errs...)
}

// open listens at an address, which need not be on a device now: a node's address may
// go for a while and come back.
func (s *Server) open(at netip.AddrPort, check plan.HealthCheck) (*answer, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		closed := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) // of IPv6 sockets, too
		})
		return cmp.Or(err, closed)
	}}
	listener, err := config.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, err
	}
	a := &answer{}
	a.check.Store(&check)
	a.server = &http.Server{Handler: a, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go func() {
		if err := a.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("a health check ended", "address", at, "error", err)
		}
	}()
	return a, nil
}

// Close stops answering, as an agent that stops must: a node that nobody looks
// after shall get no new connections.
func (s *Server) Close() {
	for _, a := range s.answers {
		a.server.Close()
	}
	clear(s.answers)
}

// body is what kube-proxy answers; load balancers of clouds know it.
type body struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

// ServeHTTP answers 200 if the node has endpoints of the Service, else 503.
func (a *answer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	check := a.check.Load()
	var b body
	b.Service.Namespace, b.Service.Name = check.Service.Namespace, check.Service.Name
	b.LocalEndpoints, b.ServiceProxyHealthy = check.LocalEndpoints, true
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(check.LocalEndpoints))
	if check.LocalEndpoints == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(b) // a client that went away wants nothing more
}
