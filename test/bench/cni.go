package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
)

// plugin is a CNI plugin where it runs: on a node with a task that stands for
// the node's namespaces.
type plugin struct {
	name   string
	task   string
	dir    string // of the executables, as seen on the node
	config map[string]any
}

// sandbox is the network namespace of a pod to be.
type sandbox struct {
	file   *os.File
	id     string // of the container
	config []byte // of the last ADD, with its result, for DEL
}

// newSandbox makes a network namespace that lives as long as the file is open,
// and runs prepare in it.
func newSandbox(prepare func() error) (*sandbox, error) {
	made := make(chan error, 1)
	s := &sandbox{}
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.file, err = os.Open("/proc/thread-self/ns/net")
		}
		if err == nil {
			err = prepare()
		}
		made <- err
	}()
	return s, <-made
}

func (s *sandbox) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

// empty waits until no interface of an earlier pod is left.
func (s *sandbox) empty() error {
	h, err := netlink.NewHandleAt(netns.NsHandle(s.file.Fd()))
	if err != nil {
		return err
	}
	defer h.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := h.LinkByName("eth0"); err != nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the interface of container %s stays", s.id)
		}
	}
}

// podName is what a runtime tells a plugin of a pod.
type podName struct {
	namespace, name string
	labels          map[string]string
}

// add attaches a sandbox as a container runtime does, and returns how long that
// took and the pod's address. The caller's thread is on the node, see onNode.
func (p *plugin) add(s *sandbox, id string, pod podName) (time.Duration, netip.Addr, error) {
	s.id = id
	config := map[string]any{"cniVersion": "1.0.0", "name": p.name, "type": p.name}
	for k, v := range p.config {
		config[k] = v
	}
	labels := []map[string]string{}
	for k, v := range pod.labels {
		labels = append(labels, map[string]string{"key": k, "value": v})
	}
	config["args"] = map[string]any{"cni": map[string]any{"labels": labels}}
	text, err := json.Marshal(config)
	if err != nil {
		return 0, netip.Addr{}, err
	}
	out, took, err := p.call("ADD", s, text, pod)
	if err != nil {
		return 0, netip.Addr{}, err
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.IPs) == 0 {
		return 0, netip.Addr{}, fmt.Errorf("%s gave no address: %s", p.name, out)
	}
	config["prevResult"] = json.RawMessage(out)
	s.config, err = json.Marshal(config)
	return took, result.IPs[0].Address.Addr(), err
}

func (p *plugin) del(s *sandbox, pod podName) (time.Duration, error) {
	_, took, err := p.call("DEL", s, s.config, pod)
	return took, err
}

func (p *plugin) call(command string, s *sandbox, config []byte, pod podName) ([]byte, time.Duration, error) {
	var out, problem bytes.Buffer
	cmd := exec.Command(filepath.Join(p.dir, p.config["type"].(string)))
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + s.id, "CNI_NETNS=" + s.path(),
		"CNI_IFNAME=eth0", "CNI_PATH=" + p.dir,
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s", pod.namespace, pod.name),
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(config), &out, &problem
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if err != nil {
		return nil, 0, fmt.Errorf("%s %s: %w: %s%s", p.name, command, err, out.Bytes(), problem.Bytes())
	}
	return out.Bytes(), took, nil
}

// onNode runs f on a thread in the node's namespaces.
func (p *plugin) onNode(f func() error) error {
	done := make(chan error, 1)
	go func() {
		if err := space.Enter(p.task); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// twill is the plugin on a node of a lab.
func twill(l *lab.Client, node string) (*plugin, error) {
	entrance, err := l.Enter(lab.Node(node))
	return &plugin{"twill", entrance.Task, "/opt/cni/bin", map[string]any{"type": "twill-cni"}}, err
}

// bridge is the reference plugin in a namespace of its own, or nil if it is not
// installed.
func (b *bench) bridge() (*plugin, *namespace, error) {
	for _, name := range []string{"bridge", "host-local"} {
		if _, err := os.Stat(filepath.Join(b.plugins, name)); err != nil {
			b.report.note("the peer is absent: no %s in %s (Debian: containernetworking-plugins)", name, b.plugins)
			return nil, nil, nil
		}
	}
	dir, err := filepath.Abs(b.plugins)
	if err != nil {
		return nil, nil, err
	}
	ns, err := newNamespace("bridge")
	if err != nil {
		return nil, nil, err
	}
	return &plugin{"bridge", ns.Task(), dir, map[string]any{
		"type": "bridge", "bridge": "cni0", "isGateway": true,
		// The same for both: what a node keeps is on tmpfs, as in the lab.
		"ipam": map[string]any{"type": "host-local", "subnet": "10.99.0.0/16", "dataDir": "/run/bench-ipam"},
	}}, ns, ns.Do(func() error { return space.Tmpfs("/run", "twill-bench") })
}

// cniFigures are of one plugin: durations in ms, p50 and p99 of each round.
type cniFigures map[string][]float64

// cni attaches and detaches pods, one after the other and eight at once, in
// turns with the peer.
func (b *bench) cni() error {
	pods, rounds := pick(b, 100, 16), pick(b, 5, 1)
	l, err := b.lab(lab.Config{Nodes: 1})
	if err != nil {
		return err
	}
	defer l.Close()
	ours, err := twill(l, lab.NodeName(0))
	if err != nil {
		return err
	}
	plugins := []*plugin{ours}
	peer, ns, err := b.bridge()
	if ns != nil {
		defer ns.Close()
	}
	if err != nil {
		return err
	}
	if peer != nil {
		plugins = append(plugins, peer)
	}
	found := map[string]cniFigures{}
	for _, p := range plugins {
		found[p.name] = cniFigures{}
	}
	for round := range rounds {
		for _, workers := range []int{1, 8} {
			for _, p := range plugins {
				b.say("cni: %s, %d at once, round %d of %d", p.name, workers, round+1, rounds)
				if err := p.round(b, fmt.Sprintf("r%d-%d", round, workers), pods, workers, found[p.name]); err != nil {
					return err
				}
			}
		}
	}
	b.reportCNI(found, peer != nil)
	return nil
}

// round attaches pods and detaches them.
func (p *plugin) round(b *bench, name string, pods, workers int, found cniFigures) error {
	var sandboxes []*sandbox
	defer func() {
		for _, s := range sandboxes {
			s.file.Close()
		}
	}()
	for range pods {
		s, err := newSandbox(func() error { return nil })
		if err != nil {
			return err
		}
		sandboxes = append(sandboxes, s)
	}
	podOf := func(i int) podName {
		return podName{namespace: "default", name: fmt.Sprintf("%s-%d", name, i), labels: map[string]string{"app": "bench"}}
	}
	adds, err := p.each(b, pods, workers, func(i int) (time.Duration, error) {
		took, _, err := p.add(sandboxes[i], fmt.Sprintf("%s-%s-%d", p.name, name, i), podOf(i))
		return took, err
	})
	if err != nil {
		return err
	}
	dels, err := p.each(b, pods, workers, func(i int) (time.Duration, error) { return p.del(sandboxes[i], podOf(i)) })
	if err != nil {
		return err
	}
	for command, all := range map[string][]float64{"ADD": adds, "DEL": dels} {
		for _, percent := range []int{50, 99} {
			key := fmt.Sprintf("%s, %d at once, p%d", command, workers, percent)
			found[key] = append(found[key], percentile(all, float64(percent)))
		}
	}
	for _, s := range sandboxes {
		if err := s.empty(); err != nil {
			return err
		}
	}
	return nil
}

// each does something for each pod, on threads on the node, and returns the
// durations in ms.
func (p *plugin) each(b *bench, pods, workers int, do func(i int) (time.Duration, error)) ([]float64, error) {
	var mu sync.Mutex
	var all []float64
	next := 0
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= pods && b.ctx.Err() == nil
	}
	results := make(chan error, workers)
	for range workers {
		go func() {
			results <- p.onNode(func() error {
				for i, ok := take(); ok; i, ok = take() {
					took, err := do(i)
					if err != nil {
						return err
					}
					mu.Lock()
					all = append(all, milliseconds(took))
					mu.Unlock()
				}
				return nil
			})
		}()
	}
	var first error
	for range workers {
		if err := <-results; err != nil && first == nil {
			first = err
		}
	}
	if first == nil {
		first = b.ctx.Err()
	}
	return all, first
}

func (b *bench) reportCNI(found map[string]cniFigures, peer bool) {
	goals := map[string]*goal{
		"ADD, 1 at once, p50": atMost(4), "ADD, 1 at once, p99": atMost(10), "DEL, 1 at once, p50": atMost(4),
	}
	for _, workers := range []int{1, 8} {
		for _, command := range []string{"ADD", "DEL"} {
			for _, percent := range []int{50, 99} {
				key := fmt.Sprintf("%s, %d at once, p%d", command, workers, percent)
				mine := found["twill"][key]
				if !peer {
					b.report.add(key, median(mine), "ms", goals[key])
					continue
				}
				theirs := found["bridge"][key]
				ratio := pairedRatio(mine, theirs)
				b.report.compare(key, median(mine), "ms", "bridge plugin", median(theirs), ratio, goals[key])
			}
		}
	}
}
