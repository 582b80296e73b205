// Package healthcheck answers load balancers that ask, on a Service's
// healthCheckNodePort, whether this node has endpoints of it: with external
// traffic policy Local a node without any must get none of its traffic.
//
// It never decides which Services those are and how many endpoints they have:
// the plan says it.
package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twill-net/twill/plan"
)

// Server answers on the ports of a plan, in the network namespace in which Apply
// is called. Apply and Close are for one goroutine.
type Server struct {
	log     *slog.Logger
	answers map[uint16]*answer
}

// New returns a server that answers nowhere yet.
func New(log *slog.Logger) *Server { return &Server{log: log, answers: map[uint16]*answer{}} }

// answer is one port's.
type answer struct {
	server *http.Server
	check  atomic.Pointer[plan.HealthCheck]
}

// Apply makes the plan's dirty health checks true and marks them clean; it says
// how many ports it opened or closed. A port that can't be opened stays dirty.
func (s *Server) Apply(p *plan.Plan) (changes int, err error) {
	if p.HealthChecks.DirtyLen() == 0 {
		return 0, nil
	}
	var errs []error
	for port := range p.HealthChecks.Dirty() {
		check, want := p.HealthChecks.Get(port)
		a := s.answers[port]
		switch {
		case want && a == nil:
			if a, err = s.open(port, check); err != nil {
				errs = append(errs, fmt.Errorf("healthCheckNodePort %d of service %s: %w: end what listens there, or give the service another port", port, check.Service, err))
				continue
			}
			s.answers[port] = a
			changes++
		case want:
			a.check.Store(&check)
		case a != nil:
			a.server.Close()
			delete(s.answers, port)
			changes++
		}
		p.HealthChecks.MarkClean(port)
	}
	return changes, errors.Join(errs...)
}

// open listens on all addresses of the node: load balancers come by any.
func (s *Server) open(port uint16, check plan.HealthCheck) (*answer, error) {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	a := &answer{}
	a.check.Store(&check)
	a.server = &http.Server{Handler: a, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go func() {
		if err := a.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("a health check ended", "port", port, "error", err)
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
