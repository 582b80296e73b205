package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
)

const (
	writersAtOnce = 16
	// settleFor is how long agents must have been at rest to be done.
	settleFor      = 5 * time.Second
	clusterTimeout = 10 * time.Minute
)

// kubernetes measures what an agent holds and does on a real cluster: at rest, and
// with many pods and services that others have.
func (b *bench) kubernetes() error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	executables, err := b.binaries()
	if err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(cache, "twill", "kubernetes-*", "kubelet"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(executables, "twill-image.tar")); err != nil || len(found) == 0 {
		b.say("kubernetes: left out; it needs what \"make kubernetes\" and \"make image VERSION=dev\" make")
		return nil
	}
	l, err := b.lab(lab.Config{Nodes: 3, Kubernetes: filepath.Dir(found[len(found)-1])})
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := newAPICluster(l)
	if err != nil {
		return err
	}
	return b.fill(c)
}

func (b *bench) fill(c *apiCluster) error {
	if err := c.install(b.ctx); err != nil {
		return err
	}
	spaces, pods, services := 50, pick(b, 50_000, 500), pick(b, 10_000, 100)
	rest, err := c.settled(b.ctx)
	if err != nil {
		return err
	}
	b.report.add("resident memory at rest, 3 nodes", rest.memory, "MiB", atMost(40))
	if err := c.each(b.ctx, spaces, c.makeNamespace); err != nil {
		return err
	}
	// They would clear away what runs on no node.
	for _, name := range []string{lab.ControllerManager, lab.Scheduler} {
		if err := c.Control(lab.ControlRequest{Process: name, Action: lab.Stop}); err != nil {
			return err
		}
	}
	b.say("kubernetes: %d pods", pods)
	if err := c.each(b.ctx, pods, func(i int) error { return c.makePod(i, spaces) }); err != nil {
		return err
	}
	withPods, err := c.settled(b.ctx)
	if err != nil {
		return err
	}
	b.report.add(fmt.Sprintf("resident memory with %d pods of other nodes", pods), withPods.memory, "MiB", atMost(60))
	b.report.add("memory of a pod of another node", (withPods.memory-rest.memory)*(1<<20)/float64(pods), "byte", nil)
	b.say("kubernetes: %d services", services)
	if err := c.each(b.ctx, services, func(i int) error { return c.makeService(i, spaces) }); err != nil {
		return err
	}
	full, err := c.settled(b.ctx)
	if err != nil {
		return err
	}
	b.report.add(fmt.Sprintf("resident memory with these and %d services × 2", services), full.memory, "MiB", nil)
	if err := c.killAgents(); err != nil {
		return err
	}
	again, err := c.settled(b.ctx)
	if err != nil {
		return err
	}
	b.report.add("resident memory when the agent has started anew", again.memory, "MiB", nil)
	busy, err := c.processor(b.ctx, pick(b, 30*time.Second, settleFor))
	b.report.add("processor time at rest", busy*100, "% of a core", atMost(1))
	return err
}

// apiCluster is a lab with Kubernetes whose API is written to directly.
type apiCluster struct {
	*lab.Client
	server, token string
	http          *http.Client
}

func newAPICluster(l *lab.Client) (*apiCluster, error) {
	argv, err := l.Config.Kubectl(nil)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(argv[len(argv)-1])
	if err != nil {
		return nil, err
	}
	var config struct {
		Clusters []struct{ Cluster struct{ Server string } }
		Users    []struct{ User struct{ Token string } }
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	master, err := l.Enter(lab.Node("master"))
	if err != nil {
		return nil, err
	}
	c := &apiCluster{Client: l, server: config.Clusters[0].Cluster.Server, token: config.Users[0].User.Token}
	c.http = &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		MaxIdleConnsPerHost: writersAtOnce,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, // the lab's own, inside its namespaces
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = space.In(master.Task, func() error { conn, err = net.Dial(network, address); return err })
			return conn, err
		},
	}}
	return c, nil
}

// do sends one request, and returns the answer's body.
func (c *apiCluster) do(method, path string, object any) ([]byte, error) {
	body, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequest(method, c.server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, said)
	}
	return said, err
}

// each calls f for 0 to n-1, some at once.
func (c *apiCluster) each(ctx context.Context, n int, f func(int) error) error {
	var next atomic.Int64
	errs := make([]error, writersAtOnce)
	var wg sync.WaitGroup
	for w := range writersAtOnce {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
				if errs[w] = ctx.Err(); errs[w] == nil {
					errs[w] = f(i)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// install applies Twill's manifests, and waits until all nodes are ready.
func (c *apiCluster) install(ctx context.Context) error {
	_, source, _, _ := runtime.Caller(0)
	deploy := filepath.Join(filepath.Dir(source), "..", "..", "deploy")
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(deploy, "crds"), "-f", filepath.Join(deploy, "twill.yaml")},
		{"wait", "node", "--all", "--for=condition=Ready", "--timeout", clusterTimeout.String()},
	} {
		argv, err := c.Config.Kubectl(args)
		if err != nil {
			return err
		}
		cmd, err := c.Command(ctx, lab.Node("master"), argv...)
		if err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

func spaceName(i int) string { return fmt.Sprintf("many-%d", i) }

// makeNamespace also waits for what pods there need.
func (c *apiCluster) makeNamespace(i int) error {
	name := spaceName(i)
	if _, err := c.do(http.MethodPost, "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": name}}); err != nil {
		return err
	}
	for deadline := time.Now().Add(clusterTimeout); ; time.Sleep(100 * time.Millisecond) {
		_, err := c.do(http.MethodGet, "/api/v1/namespaces/"+name+"/serviceaccounts/default", nil)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// makePod makes a pod as large as those of a Deployment are, of a node that is
// not there, with an address.
func (c *apiCluster) makePod(i, spaces int) error {
	in, name := spaceName(i%spaces), fmt.Sprintf("app-%d-7d9c5b6f4c-%05d", i%500, i)
	var env []any
	for v := range 12 {
		env = append(env, map[string]any{"name": fmt.Sprintf("SETTING_%d", v), "value": "a value that nobody here reads"})
	}
	pod := map[string]any{
		"metadata": map[string]any{
			"name":        name,
			"labels":      map[string]any{"app": fmt.Sprintf("app-%d", i%500), "pod-template-hash": "7d9c5b6f4c", "tier": "backend"},
			"annotations": map[string]any{"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
		},
		"spec": map[string]any{
			"nodeName": fmt.Sprintf("far-%d", i/100), "automountServiceAccountToken": false,
			"containers": []any{map[string]any{
				"name": "app", "image": "registry.example/app:1.2.3", "env": env,
				"ports":     []any{map[string]any{"name": "http", "containerPort": 8080}},
				"resources": map[string]any{"requests": map[string]any{"cpu": "100m", "memory": "64Mi"}},
			}},
		},
	}
	pods := "/api/v1/namespaces/" + in + "/pods"
	if _, err := c.do(http.MethodPost, pods, pod); err != nil {
		return err
	}
	_, err := c.do(http.MethodPatch, pods+"/"+name+"/status", map[string]any{"status": map[string]any{
		"phase": "Running", "podIP": farAddress(i), "podIPs": []any{map[string]any{"ip": farAddress(i)}},
	}})
	return err
}

func farAddress(i int) string { return fmt.Sprintf("10.%d.%d.%d", 100+i>>16, i>>8&255, i&255) }

// makeService makes a service and its two endpoints.
func (c *apiCluster) makeService(i, spaces int) error {
	in, name := spaceName(i%spaces), fmt.Sprintf("service-%d", i)
	if _, err := c.do(http.MethodPost, "/api/v1/namespaces/"+in+"/services", map[string]any{
		"metadata": map[string]any{"name": name},
		"spec":     map[string]any{"ports": []any{map[string]any{"name": "http", "port": 80, "targetPort": 8080}}},
	}); err != nil {
		return err
	}
	var endpoints []any
	for e := range 2 {
		endpoints = append(endpoints, map[string]any{"addresses": []any{farAddress(2*i + e)}, "conditions": map[string]any{"ready": true}})
	}
	_, err := c.do(http.MethodPost, "/apis/discovery.k8s.io/v1/namespaces/"+in+"/endpointslices", map[string]any{
		"metadata":    map[string]any{"name": name + "-abcde", "labels": map[string]any{"kubernetes.io/service-name": name}},
		"addressType": "IPv4", "endpoints": endpoints,
		"ports": []any{map[string]any{"name": "http", "port": 8080, "protocol": "TCP"}},
	})
	return err
}

// usage is the median of the agents.
type usage struct {
	memory    float64 // MiB resident
	processor float64 // s used
}

// usage reads what the agents tell of themselves; an agent that is starting does
// not.
func (c *apiCluster) usage(ctx context.Context) (u usage, err error) {
	var memory, processor []float64
	for _, name := range c.Config.NodeNames() {
		cmd, err := c.Command(ctx, lab.Node(name), "wget", "-q", "-O", "-", lab.AgentMetrics)
		if err != nil {
			return u, err
		}
		out, err := cmd.Output()
		if err != nil {
			return u, fmt.Errorf("metrics of the agent of %s: %w", name, err)
		}
		memory = append(memory, metric(string(out), "process_resident_memory_bytes")/(1<<20))
		processor = append(processor, metric(string(out), "process_cpu_seconds_total"))
	}
	return usage{median(memory), median(processor)}, nil
}

func metric(text, name string) float64 {
	_, rest, _ := strings.Cut(text, "\n"+name+" ")
	line, _, _ := strings.Cut(rest, "\n")
	value, _ := strconv.ParseFloat(line, 64) // it is there, or 0
	return value
}

// restLoad is what an agent uses that has nothing to take in, in processors.
const restLoad = 0.02

// settled waits until the agents have taken in what there is.
func (c *apiCluster) settled(ctx context.Context) (u usage, err error) {
	for deadline := time.Now().Add(clusterTimeout); time.Now().Before(deadline) && ctx.Err() == nil; {
		busy, err := c.processor(ctx, settleFor)
		if err != nil {
			time.Sleep(time.Second)
			continue
		}
		if busy < restLoad {
			return c.usage(ctx)
		}
	}
	return u, errors.Join(ctx.Err(), fmt.Errorf("the agents are not at rest after %s", clusterTimeout))
}

// processor is what an agent uses for a while, in processors.
func (c *apiCluster) processor(ctx context.Context, period time.Duration) (float64, error) {
	before, err := c.usage(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-time.After(period):
	case <-ctx.Done():
	}
	after, err := c.usage(ctx)
	return (after.processor - before.processor) / time.Since(began).Seconds(), err
}

// killAgents kills the nodes' agents: their kubelets start them anew.
func (c *apiCluster) killAgents() error {
	const script = `for p in /proc/[0-9]*; do
	[ "$(readlink $p/ns/net)" = "$(readlink /proc/self/ns/net)" ] && [ "$(cat $p/comm)" = twill ] && tr '\0' ' ' <$p/cmdline | grep -q " agent " && kill -9 ${p#/proc/} && exit 0
done 2>/dev/null
echo "there is no agent" >&2; exit 1`
	for _, name := range c.Config.NodeNames() {
		cmd, err := c.Command(context.Background(), lab.Node(name), "sh", "-c", script)
		if err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("kill the agent of %s: %w: %s", name, err, out)
		}
	}
	return nil
}
