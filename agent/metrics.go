package agent

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/twill-net/twill/health"
)

// metrics are the agent's figures for Prometheus. Names follow
// twill_<area>_<thing>_<unit>.
type metrics struct {
	registry *prometheus.Registry
	agent    *Agent

	writes *prometheus.CounterVec
	drift  prometheus.Counter
	apply  prometheus.Histogram
	cni    *prometheus.HistogramVec
}

func newMetrics(a *Agent) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(), agent: a,
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "twill_dataplane_writes_total",
			Help: "Objects written to or removed from the kernel.",
		}, []string{"area"}),
		drift: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "twill_dataplane_drift_total",
			Help: "Times that another program was seen to change what is Twill's in the kernel; Twill's own work is not counted.",
		}),
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "twill_dataplane_apply_duration_seconds",
			Help:    "Time to plan and to make the plan true, for rounds that wrote something.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}),
		cni: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "twill_cni_request_duration_seconds",
			Help:    "Time that CNI requests took in the agent.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"command", "result"}),
	}
	for _, area := range []string{"nftables", "rtnetlink", "conntrack", "healthcheck"} {
		m.writes.WithLabelValues(area) // a counter that was never raised reads 0
	}
	m.registry.MustRegister(m.writes, m.drift, m.apply, m.cni, conditions{a.health},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe records one CNI request.
func (m *metrics) observe(command string, start time.Time, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.cni.WithLabelValues(command, result).Observe(time.Since(start).Seconds())
}

// conditions exports what is wrong, each condition that agents report a gauge that
// is 0 or the number of subjects. A condition that only other components report
// would always read 0 here.
type conditions struct{ tracker *health.Tracker }

var conditionDesc = prometheus.NewDesc("twill_condition", "How many things are wrong in this way.", []string{"code"}, nil)

func (c conditions) Describe(out chan<- *prometheus.Desc) { out <- conditionDesc }

func (c conditions) Collect(out chan<- prometheus.Metric) {
	n := map[health.Code]int{}
	for _, condition := range c.tracker.Conditions() {
		n[condition.Code]++
	}
	codes := slices.Clone(health.WatchedByAgent)
	for _, d := range health.Definitions() {
		if d.Reporter() == health.Agent {
			codes = append(codes, d.Code)
		}
	}
	for _, code := range codes {
		out <- prometheus.MustNewConstMetric(conditionDesc, prometheus.GaugeValue, float64(n[code]), string(code))
	}
}

// serve answers /metrics and /healthz until ctx ends; an empty address serves
// nothing.
func (m *metrics) serve(ctx context.Context, address string) error {
	if address == "" {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", m.healthz)
	if err := serveHTTP(ctx, address, mux, func() {}); err != nil {
		return fmt.Errorf("%w: choose another --metrics-address", err)
	}
	return nil
}

// healthz is 200 once the node is in step with the store, 503 before; the body
// lists what is wrong.
func (m *metrics) healthz(w http.ResponseWriter, _ *http.Request) {
	conditions := m.agent.health.Conditions()
	for _, c := range conditions {
		if c.Code == health.NotSynced {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	fmt.Fprintf(w, "twill agent on %s, %s\n", m.agent.config.NodeName, runtime.Version())
	for _, c := range conditions {
		fmt.Fprintln(w, c)
	}
}
