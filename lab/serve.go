package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// stopPatience is how long a process may take to end after SIGTERM.
const stopPatience = 10 * time.Second

// service is the supervisor as its clients see it: each method is one command,
// with the request and the place for the reply as net/rpc wants it.
type service struct{ s *supervisor }

func (s *supervisor) serve(l net.Listener) {
	server := rpc.NewServer()
	if err := server.RegisterName("Lab", &service{s}); err != nil {
		panic(err) // a method has the wrong form: a mistake in this file
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the lab ends
			}
			go serveConn(server, conn)
		}
	}()
}

// serveConn speaks JSON: gob, which is net/rpc's own encoding, panics on some
// bytes that nobody should send.
func serveConn(server *rpc.Server, conn io.ReadWriteCloser) {
	server.ServeCodec(jsonrpc.NewServerCodec(conn))
}

// Nothing stands for a request or reply without content.
type Nothing struct{}

// RunRequest asks for pods.
type RunRequest struct {
	Namespace string
	Name      string // of the pod, or with Replicas > 1 of NAME-1, NAME-2 ...
	Labels    map[string]string
	Node      string // empty: one node after the other
	Replicas  int
	Ports     []Port
	// Command is the main process; empty: a web server on each port.
	Command []string
	// Idle pods have no main process.
	Idle bool
}

// RemoveRequest says which pods are to go: by name, or all with the labels.
type RemoveRequest struct {
	Namespace string
	Names     []string
	Labels    map[string]string
}

// Place is somewhere in a lab where commands can be executed: a pod, else a
// node, else the host outside the cluster.
type Place struct {
	Namespace, Pod string
	Node           string
}

// Pod is a pod as a place.
func Pod(namespace, name string) Place { return Place{Namespace: namespace, Pod: name} }

// Node is a node as a place.
func Node(name string) Place { return Place{Node: name} }

// Outside is the host outside the cluster as a place.
func Outside() Place { return Place{} }

// Entrance is how to get to a place: the task whose namespaces to enter, and the
// environment there.
type Entrance struct {
	Task        string
	Environment []string
}

// Processes that only a lab with Kubernetes has.
const (
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Kubelet           = "kubelet" // of a node
)

// ControlRequest is about a process of the lab: "etcd", "controller", one of those
// above, or an agent by its node.
type ControlRequest struct {
	Process string
	Node    string
	Action  Action
}

// Action is what can be done with a process.
type Action string

// Check says what is wrong with the action.
func (a Action) Check() error {
	if !slices.Contains([]Action{Stop, Start, Kill}, a) {
		return fmt.Errorf("action %q: use %s, %s or %s", a, Stop, Start, Kill)
	}
	return nil
}

// The actions: Stop asks it to end, Kill does not ask.
const (
	Stop  Action = "stop"
	Start Action = "start"
	Kill  Action = "kill"
)

// errKubernetes is for what a lab does itself only where it has no Kubernetes.
var errKubernetes = errors.New("this lab's pods and agents are those of Kubernetes: use twill lab kubectl")

// Status answers what there is.
func (v *service) Status(_ Nothing, out *Status) error {
	s := v.s
	*out = Status{Name: s.cfg.Name, PID: os.Getpid(), Etcd: s.etcd.status(), Controller: s.controller.status(), Endpoint: EtcdEndpoint(s.cfg.Name)}
	for _, n := range s.nodes {
		out.Nodes = append(out.Nodes, NodeStatus{n.name, n.addresses, n.agent.status()})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pods {
		if p != nil {
			out.Pods = append(out.Pods, p.status())
		}
	}
	slices.SortFunc(out.Pods, func(a, b PodStatus) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return nil
}

// maxReplicas bounds the pods of one request.
const maxReplicas = 1000

// makeAtOnce is how many pods of one request are made at the same time.
const makeAtOnce = 4

// Run makes pods. When one fails, the others stay.
func (v *service) Run(r RunRequest, out *[]PodStatus) error {
	names, err := r.check()
	if err != nil {
		return err
	}
	if v.s.kubernetes != nil {
		return errKubernetes
	}
	if err := v.s.ensureNamespace(r.Namespace); err != nil {
		return err
	}
	nodes, err := v.s.reserve(r.Namespace, names, r.Node)
	if err != nil {
		return err
	}
	pods, problems := make([]*pod, len(names)), make([]error, len(names))
	turns := make(chan struct{}, makeAtOnce)
	var wait sync.WaitGroup
	for i, name := range names {
		wait.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			pods[i], problems[i] = v.s.runOne(r, nodes[i], name)
		})
	}
	wait.Wait()
	for _, p := range pods {
		if p != nil {
			*out = append(*out, p.status())
		}
	}
	if err := errors.Join(problems...); err != nil && len(*out) > 0 {
		return fmt.Errorf("%w\n%d of %d pods run: see \"twill lab status\"", err, len(*out), len(names))
	}
	return errors.Join(problems...)
}

// Check says what is wrong with the request.
func (r *RunRequest) Check() error {
	_, err := r.check()
	return err
}

func (r *RunRequest) check() (names []string, err error) {
	if r.Replicas < 1 || r.Replicas > maxReplicas {
		return nil, fmt.Errorf("%d replicas: give 1 to %d", r.Replicas, maxReplicas)
	}
	names = []string{r.Name}
	if r.Replicas > 1 {
		names = nil
		for i := range r.Replicas {
			names = append(names, fmt.Sprintf("%s-%d", r.Name, i+1))
		}
	}
	var problems []string
	for _, name := range names[len(names)-1:] { // the longest
		for _, p := range validation.IsDNS1123Label(name) {
			problems = append(problems, fmt.Sprintf("pod name %q: %s", name, p))
		}
	}
	for _, p := range validation.IsDNS1123Label(r.Namespace) {
		problems = append(problems, fmt.Sprintf("namespace %q: %s", r.Namespace, p))
	}
	for k, value := range r.Labels {
		for _, p := range validation.IsQualifiedName(k) {
			problems = append(problems, fmt.Sprintf("label %q: %s", k, p))
		}
		for _, p := range validation.IsValidLabelValue(value) {
			problems = append(problems, fmt.Sprintf("label %s=%q: %s", k, value, p))
		}
	}
	if len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, "\n"))
	}
	return names, nil
}

// ensureNamespace makes a namespace where there is none. Pods of one that was
// made before start without the store.
func (s *supervisor) ensureNamespace(name string) error {
	s.mu.Lock()
	patience := startPatience
	if s.namespaces[name] {
		patience = 200 * time.Millisecond
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	api.Default(ns)
	_, err := s.store.Create(ctx, ns)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, store.ErrExists):
		s.namespaces[name] = true
	case !errors.Is(err, store.ErrUnavailable) || !s.namespaces[name]:
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	return nil
}

// runOne makes a pod whose name is reserved.
func (s *supervisor) runOne(r RunRequest, n *node, name string) (*pod, error) {
	p, err := newPod(&s.cfg, n, r.Namespace, name, r.Labels, r.Ports)
	if err == nil && !r.Idle {
		if err = p.run(LogPath(s.cfg.Name, "pod-"+r.Namespace+"-"+name), r.Command, r.Ports); err != nil {
			err = errors.Join(err, p.remove())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := api.Key{Namespace: r.Namespace, Name: name}
	if err != nil {
		delete(s.pods, key)
		return nil, err
	}
	s.pods[key] = p
	return p, nil
}

// reserve takes the names of pods that are going to be made, all or none, so
// that two requests can't make the same while others need not wait, and chooses
// their nodes.
func (s *supervisor) reserve(namespace string, names []string, nodeName string) ([]*node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if _, ok := s.pods[api.Key{Namespace: namespace, Name: name}]; ok {
			return nil, fmt.Errorf("there is a pod %s/%s already: remove it with \"twill lab rm -n %s %s\"", namespace, name, namespace, name)
		}
	}
	nodes := make([]*node, len(names))
	for i := range names {
		if nodeName == "" {
			nodes[i] = s.nodes[s.next%len(s.nodes)]
			s.next++
			continue
		}
		n, err := s.node(nodeName)
		if err != nil {
			return nil, err
		}
		nodes[i] = n
	}
	for _, name := range names {
		s.pods[api.Key{Namespace: namespace, Name: name}] = nil
	}
	return nodes, nil
}

func (s *supervisor) node(name string) (*node, error) {
	for _, n := range s.nodes {
		if n.name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("there is no node %q: they are %s", name, strings.Join(s.cfg.NodeNames(), ", "))
}

// Remove ends pods and answers their names. All are tried.
func (v *service) Remove(r RemoveRequest, out *[]string) error {
	chosen, err := v.s.choose(r)
	if err != nil {
		return err
	}
	problems := make([]error, len(chosen))
	var wait sync.WaitGroup
	for i, p := range chosen {
		*out = append(*out, p.name)
		wait.Go(func() { problems[i] = p.remove() })
	}
	wait.Wait()
	return errors.Join(problems...)
}

// choose takes the pods that are to go out of the table, so that nobody else
// removes them too.
func (s *supervisor) choose(r RemoveRequest) ([]*pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var chosen []*pod
	for _, name := range r.Names {
		p := s.pods[api.Key{Namespace: r.Namespace, Name: name}]
		if p == nil {
			return nil, fmt.Errorf("there is no pod %s in namespace %s", name, r.Namespace)
		}
		if !slices.Contains(chosen, p) {
			chosen = append(chosen, p)
		}
	}
	if len(r.Names) == 0 {
		for key, p := range s.pods {
			if p != nil && key.Namespace == r.Namespace && hasLabels(p.labels, r.Labels) {
				chosen = append(chosen, p)
			}
		}
	}
	for _, p := range chosen {
		delete(s.pods, api.Key{Namespace: p.namespace, Name: p.name})
	}
	slices.SortFunc(chosen, func(a, b *pod) int { return strings.Compare(a.name, b.name) })
	return chosen, nil
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Enter answers how to get to a place.
func (v *service) Enter(at Place, out *Entrance) error {
	s := v.s
	switch {
	case at.Pod != "":
		s.mu.Lock()
		defer s.mu.Unlock()
		p := s.pods[api.Key{Namespace: at.Namespace, Name: at.Pod}]
		if p == nil {
			return fmt.Errorf("there is no pod %s in namespace %s", at.Pod, at.Namespace)
		}
		*out = Entrance{p.space.Task(), podEnvironment(p.namespace, p.name, p.node.name)}
	case at.Node != "":
		n, err := s.node(at.Node)
		if err != nil {
			return err
		}
		*out = Entrance{n.space.Task(), hostEnvironment()}
	default:
		*out = Entrance{s.outside.Task(), hostEnvironment()}
	}
	return nil
}

// Control stops, starts or kills a process of the lab, and waits for it.
func (v *service) Control(r ControlRequest, _ *Nothing) error {
	var p *process
	ready := func() bool { return true }
	switch k := v.s.kubernetes; {
	case k != nil && r.Process == APIServer:
		p, ready = k.program(r.Process), func() bool { return k.answers(context.Background(), v.s.nodes[0]) }
	case k != nil && k.program(r.Process) != nil:
		p = k.program(r.Process)
	case k != nil && r.Process == Kubelet:
		n, err := v.s.node(r.Node)
		if err != nil {
			return err
		}
		p = n.kubelet
	case k != nil && r.Process != "etcd":
		return errKubernetes
	case r.Node != "":
		n, err := v.s.node(r.Node)
		if err != nil {
			return err
		}
		p, ready = n.agent, n.ready
	case r.Process == "etcd":
		p, ready = v.s.etcd, v.s.etcdListens
	case r.Process == "controller":
		p = v.s.controller
	default:
		return fmt.Errorf("there is no process %q: name etcd, controller or a node's agent", r.Process)
	}
	switch r.Action {
	case Stop:
		return p.end(syscall.SIGTERM, stopPatience)
	case Kill:
		return p.end(syscall.SIGKILL, stopPatience)
	case Start:
		if err := p.start(); err != nil {
			return err
		}
		return p.await(ready, startPatience)
	}
	return r.Action.Check()
}
