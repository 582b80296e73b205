package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/preflight"
	"github.com/twill-net/twill/store"
)

// The values of Config.Services.
const (
	ServicesAuto = "auto" // where no kube-proxy is found
	ServicesOn   = "on"
	ServicesOff  = "off"
)

// Where kube-proxy answers, and so who takes its place: load balancers and
// monitoring look there.
const (
	proxyHealthAddress = ":10256"
	proxyModeAddress   = "127.0.0.1:10249"
)

const (
	whoServes = "who serves Services" // among what has to be known before anything is programmed
	// proxyInterval is how often a kube-proxy is looked for.
	proxyInterval = 10 * time.Second
	// proxyRulesInterval is how often what a kube-proxy left is looked for.
	proxyRulesInterval = time.Minute
	// serviceRangesInterval is how often the ranges of cluster IPs are read, which
	// hardly ever change.
	serviceRangesInterval = time.Minute
	// deletionTaint is what the cluster autoscaler gives a node that it is about to
	// remove.
	deletionTaint = "ToBeDeletedByClusterAutoscaler"
)

// followServiceProxy decides, as long as ctx lasts, whether this agent serves the
// node's Services. When a kube-proxy comes they are left to it, and taken over
// when it goes: connections that are established go on either way.
func (a *Agent) followServiceProxy(ctx context.Context) {
	leavePlace := func() {}
	defer func() { leavePlace() }()
	for first, serves := true, false; ; {
		now, err := a.shouldServe(ctx, serves, proxyModeAddress)
		if err != nil && first {
			a.log.Debug("look for a kube-proxy later", "error", err)
			if !store.Pause(ctx, a.store, time.Second) {
				return
			}
			continue
		}
		if err == nil && (first || now != serves) {
			leavePlace()
			leavePlace = func() {}
			if now {
				leavePlace = a.takeProxysPlace(ctx)
			}
			first, serves = false, now
			_ = a.do(ctx, func() { a.setServes(ctx, now) })
		}
		if a.config.Services != ServicesAuto {
			<-ctx.Done()
			return
		}
		if !store.Pause(ctx, a.store, proxyInterval) {
			return
		}
	}
}

// followServiceRanges keeps the planner in step with the ranges of cluster IPs. Of a
// cluster that does not say them nothing is known, and nothing dropped.
func (a *Agent) followServiceRanges(ctx context.Context) {
	o, ok := a.store.(store.Orchestrated)
	if len(a.config.ServiceCIDRs) > 0 || !ok {
		_ = a.do(ctx, func() { a.planner.SetServiceRanges(a.config.ServiceCIDRs) })
		return
	}
	var known []netip.Prefix
	for {
		now, err := o.ServiceRanges(ctx)
		switch {
		case err != nil:
			a.log.Debug("look for the ranges of cluster IPs later", "error", err)
		case !slices.Equal(now, known):
			known = now
			_ = a.do(ctx, func() { a.planner.SetServiceRanges(now) })
		}
		if !store.Pause(ctx, a.store, serviceRangesInterval) {
			return
		}
	}
}

// shouldServe says whether Services are for this agent, which serves them now or
// not: what answers at kube-proxy's address tells something only while it is not
// the agent itself.
func (a *Agent) shouldServe(ctx context.Context, serves bool, address string) (bool, error) {
	if a.config.Services != ServicesAuto {
		return a.config.Services == ServicesOn, nil
	}
	if o, ok := a.store.(store.Orchestrated); ok {
		found, err := o.ServiceProxy(ctx)
		if found || errors.Is(err, store.ErrUnavailable) {
			return false, err
		}
		if err != nil {
			a.log.Debug("the cluster does not tell whether it has a kube-proxy", "error", err)
		}
	}
	return serves || !proxyAnswers(ctx, address), nil
}

// proxyAnswers says whether a kube-proxy runs on this node, however it came there.
func proxyAnswers(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/proxyMode", nil)
	if err != nil {
		return false
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy of the environment
	answer, err := client.Do(request)
	if err != nil {
		return false
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// setServes runs on the loop.
func (a *Agent) setServes(ctx context.Context, serves bool) {
	if serves != a.serves {
		a.log.Info("who serves Services has changed", "this agent", serves)
	}
	a.serves = serves
	a.planner.SetServices(serves)
	a.known(ctx, whoServes)
	a.publishNodeOnChange()
}

// takeProxysPlace answers what kube-proxy is asked and looks for rules that one has
// left, until leave is called. A port that is taken is tried again.
func (a *Agent) takeProxysPlace(ctx context.Context) (leave func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	for _, s := range []struct {
		address string
		handler http.Handler
	}{{proxyHealthAddress, a.proxyHealth()}, {proxyModeAddress, proxyMode()}} {
		wait.Go(func() {
			for ctx.Err() == nil {
				err := serveHTTP(ctx, s.address, s.handler, func() { a.health.Clear(health.ProxyPortTaken, s.address) })
				if err != nil {
					a.health.Set(health.ProxyPortTaken, s.address, err.Error())
				}
				store.Pause(ctx, a.store, proxyInterval)
			}
			a.health.Clear(health.ProxyPortTaken, s.address)
		})
	}
	wait.Go(func() { a.watchProxyRules(ctx) })
	return func() { cancel(); wait.Wait() }
}

func (a *Agent) watchProxyRules(ctx context.Context) {
	defer a.health.Clear(health.ProxyRulesLeft, "")
	for {
		a.lookForProxyRules()
		select {
		case <-ctx.Done():
			return
		case <-time.After(proxyRulesInterval):
		}
	}
}

// lookForProxyRules tells of rules of a kube-proxy: connections that these
// translate are not translated again, and nobody brings them up to date.
func (a *Agent) lookForProxyRules() {
	switch where, err := preflight.ProxyRules(); {
	case where != "":
		a.health.Set(health.ProxyRulesLeft, "", fmt.Sprintf("the %s of a kube-proxy may take connections to Services away from Twill: "+
			"run `kube-proxy --cleanup` on this node, or reboot it", where))
	case err != nil:
		a.log.Debug("look for rules of a kube-proxy later", "error", err)
	default:
		a.health.Clear(health.ProxyRulesLeft, "")
	}
}

// serveHTTP answers at an address until ctx ends; listening is called once it
// does.
func serveHTTP(ctx context.Context, address string, handler http.Handler, listening func()) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	listening()
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// proxyMode answers in which way Services are served.
func proxyMode() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /proxyMode", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "nftables") })
	return mux
}

// proxyHealth tells load balancers whether this node is to get new connections:
// /healthz says no also while the node is being removed, /livez does not. The
// bodies are kube-proxy's.
func (a *Agent) proxyHealth() http.Handler {
	answer := func(w http.ResponseWriter, eligible *bool) {
		now, healthy := time.Now().UTC(), a.carries.Load()
		body := proxyHealth{CurrentTime: now, NodeEligible: eligible, Healthy: healthy}
		if healthy {
			one := familyHealth{now, true}
			body.LastUpdated, body.Status = now, map[corev1.IPFamily]familyHealth{corev1.IPv4Protocol: one, corev1.IPv6Protocol: one}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !healthy || eligible != nil && !*eligible {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(body) // a client that went away wants nothing more
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		eligible := !a.leavesCluster.Load()
		answer(w, &eligible)
	})
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	return mux
}

// proxyHealth is the body of /healthz and /livez.
type proxyHealth struct {
	LastUpdated  time.Time                        `json:"lastUpdated"` // zero: nothing is programmed yet
	CurrentTime  time.Time                        `json:"currentTime"`
	NodeEligible *bool                            `json:"nodeEligible,omitempty"` // only of /healthz
	Healthy      bool                             `json:"healthy"`
	Status       map[corev1.IPFamily]familyHealth `json:"status,omitempty"` // both families have one fate
}

type familyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// leaves says whether a node is being removed.
func leaves(n *corev1.Node) bool {
	if n.DeletionTimestamp != nil {
		return true
	}
	for _, t := range n.Spec.Taints {
		if t.Key == deletionTaint {
			return true
		}
	}
	return false
}
