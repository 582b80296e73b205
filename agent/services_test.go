package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/dataplane/testnet"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/memory"
)

// proxied is a cluster whose DaemonSet kube-proxy is there, or not, or can't be
// asked for.
type proxied struct {
	*memory.Store
	found  bool
	ranges []netip.Prefix
	err    error
}

func (*proxied) Orchestrator() string { return "a test" }

func (p *proxied) ServiceProxy(context.Context) (bool, error) { return p.found, p.err }

func (p *proxied) ServiceRanges(context.Context) ([]netip.Prefix, error) { return p.ranges, p.err }

func TestWhoServesServices(t *testing.T) {
	// A kube-proxy that is none of the cluster's objects, as in k3s.
	elsewhere := httptest.NewServer(proxyMode())
	defer elsewhere.Close()
	away := fmt.Errorf("%w: no route", store.ErrUnavailable)
	for _, test := range []struct {
		name     string
		setting  string
		cluster  store.Store
		runs     bool // a kube-proxy on the node
		serves   bool // now
		want     bool
		wantsErr bool
	}{
		{"nobody else", ServicesAuto, &proxied{Store: memory.New()}, false, false, true, false},
		{"without Kubernetes", ServicesAuto, memory.New(), false, false, true, false},
		{"a DaemonSet", ServicesAuto, &proxied{Store: memory.New(), found: true}, false, false, false, false},
		{"a DaemonSet came", ServicesAuto, &proxied{Store: memory.New(), found: true}, false, true, false, false},
		{"a process", ServicesAuto, &proxied{Store: memory.New()}, true, false, false, false},
		{"what answers is the agent", ServicesAuto, &proxied{Store: memory.New()}, true, true, true, false},
		{"an outage", ServicesAuto, &proxied{Store: memory.New(), err: away}, false, true, false, true},
		{"may not ask", ServicesAuto, &proxied{Store: memory.New(), err: errors.New("forbidden")}, false, false, true, false},
		{"on", ServicesOn, &proxied{Store: memory.New(), found: true}, true, false, true, false},
		{"off", ServicesOff, &proxied{Store: memory.New()}, false, true, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			address := "127.0.0.1:0" // nobody's
			if test.runs {
				address = elsewhere.Listener.Addr().String()
			}
			a := &Agent{config: Config{Services: test.setting}, store: test.cluster, log: slog.New(slog.DiscardHandler)}
			got, err := a.shouldServe(t.Context(), test.serves, address)
			if got != test.want || (err != nil) != test.wantsErr {
				t.Errorf("serves %t, %v; want %t", got, err, test.want)
			}
		})
	}
}

// TestServiceRangesAreTheStoresOrTheSettings: what is known of the ranges of cluster
// IPs gets into the plan; where nothing is, nothing does.
func TestServiceRangesAreTheStoresOrTheSettings(t *testing.T) {
	kube, set := netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("10.1.0.0/16")
	for _, c := range []struct {
		name    string
		setting []netip.Prefix
		cluster store.Store
		want    []string
	}{
		{"Kubernetes says them", nil, &proxied{Store: memory.New(), ranges: []netip.Prefix{kube}}, []string{"10.96.0.0"}},
		{"the setting wins", []netip.Prefix{set}, &proxied{Store: memory.New(), ranges: []netip.Prefix{kube}}, []string{"10.1.0.0"}},
		{"without Kubernetes", []netip.Prefix{set}, memory.New(), []string{"10.1.0.0"}},
		{"Kubernetes has no such objects", nil, &proxied{Store: memory.New(), err: errors.New("404")}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &Agent{config: Config{ServiceCIDRs: c.setting}, store: c.cluster, log: slog.New(slog.DiscardHandler),
				work: make(chan func(), 1), planner: plan.NewPlanner("here")}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { a.followServiceRanges(ctx); close(ended) }()
			if c.want != nil {
				select {
				case f := <-a.work:
					f()
				case <-time.After(10 * time.Second):
					t.Fatal("the planner is not told")
				}
			}
			cancel()
			<-ended
			var got []string
			for k := range a.planner.Flush().Elements.All() {
				if k.Set == "service-cidrs4" {
					got = append(got, netip.AddrFrom4([4]byte([]byte(k.Key))).String())
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" || len(a.work) > 0 {
				t.Errorf("ranges in the plan (-want +got):\n%s%d more changes", diff, len(a.work))
			}
		})
	}
}

func TestAnswersForProxy(t *testing.T) {
	a := &Agent{}
	get := func(h http.Handler, path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		body, _ := io.ReadAll(w.Body)
		return w.Code, string(body)
	}
	times := regexp.MustCompile(`"20[^"]+Z"`)
	expect := func(path string, want int, wantBody string) {
		t.Helper()
		code, body := get(a.proxyHealth(), path)
		if got := times.ReplaceAllString(strings.TrimSpace(body), `"now"`); code != want || got != wantBody {
			t.Errorf("%s: %d %s\nwant %d %s", path, code, got, want, wantBody)
		}
	}
	// Nothing is programmed yet.
	expect("/healthz", http.StatusServiceUnavailable, `{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"now","nodeEligible":true,"healthy":false}`)
	const healthy = `"healthy":true,"status":{"IPv4":{"lastUpdated":"now","healthy":true},"IPv6":{"lastUpdated":"now","healthy":true}}}`
	a.carries.Store(true)
	expect("/healthz", http.StatusOK, `{"lastUpdated":"now","currentTime":"now","nodeEligible":true,`+healthy)
	n := &corev1.Node{}
	n.Spec.Taints = []corev1.Taint{{Key: deletionTaint, Effect: corev1.TaintEffectNoSchedule}}
	a.leavesCluster.Store(leaves(n))
	expect("/healthz", http.StatusServiceUnavailable, `{"lastUpdated":"now","currentTime":"now","nodeEligible":false,`+healthy)
	expect("/livez", http.StatusOK, `{"lastUpdated":"now","currentTime":"now",`+healthy)
	if code, body := get(proxyMode(), "/proxyMode"); code != http.StatusOK || body != "nftables" {
		t.Errorf("/proxyMode: %d %q", code, body)
	}
}

// TestRulesThatAKubeProxyLeft are told of while this agent serves Services, and
// until they are gone.
func TestRulesThatAKubeProxyLeft(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	ns := testnet.New(t)
	nft := func(command string) {
		t.Helper()
		if out, err := ns.Command("nft", command).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	a := &Agent{health: &health.Tracker{}, log: slog.New(slog.DiscardHandler)}
	changed := make(chan struct{}, 10)
	a.health.OnChange(func() { changed <- struct{}{} })
	await := func(what string, want []health.Condition) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nothing changed", what)
		}
		if diff := cmp.Diff(want, a.health.Conditions()); diff != "" {
			t.Fatalf("%s:\n%s", what, diff)
		}
	}
	left := []health.Condition{{Code: health.ProxyRulesLeft, Detail: "the nftables table kube-proxy of a kube-proxy may take connections to Services away from Twill: " +
		"run `kube-proxy --cleanup` on this node, or reboot it"}}

	nft("add table ip kube-proxy; add chain ip kube-proxy services")
	ctx, leave := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() { ns.Do(func() { a.watchProxyRules(ctx) }) })
	await("when it begins to serve", left)
	leave()
	watch.Wait()
	await("when it leaves Services to another", []health.Condition{})

	ns.Do(a.lookForProxyRules)
	await("rules", left)
	nft("delete table ip kube-proxy")
	ns.Do(a.lookForProxyRules)
	await("no rules", []health.Condition{})
}
