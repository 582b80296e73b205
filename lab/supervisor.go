package lab

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab/nameserver"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/etcd"
)

// startPatience bounds the wait for each process to be ready.
const startPatience = 20 * time.Second

// Where the name server lives.
const (
	systemNamespace = "kube-system"
	dnsPod          = "dns"
	dnsService      = "kube-dns"
)

// supervisor holds a lab.
type supervisor struct {
	cfg Config
	log *slog.Logger

	hub        *space.Space
	outside    *space.Space
	nodes      []*node
	etcd       *process
	controller *process
	kubernetes *kubernetes // nil without
	store      store.Store

	mu         sync.Mutex
	pods       map[api.Key]*pod // nil while one is being made
	next       int              // index of the node for the next pod
	namespaces map[string]bool  // that were there once
}

func (c *Config) etcdURL() string {
	return "http://" + net.JoinHostPort(c.NodeAddresses(0)[0].String(), "2379")
}

// bringUp makes the lab, step by step; tell gets each before it is done.
func (s *supervisor) bringUp(ctx context.Context, tell func(string)) error {
	type step struct {
		say string
		do  func(context.Context) error
	}
	steps := []step{
		{"switch, master and etcd", s.makeMaster},
		{"other nodes and the host outside", s.makeNodes},
		{"pools and name service in the store", s.fillStore},
		{"controller and agents", s.startTwill},
		{"name server", s.startDNS},
	}
	if s.cfg.Kubernetes != "" {
		steps = append(steps[:2:2],
			step{"Kubernetes' control plane", s.startControlPlane},
			step{"registry, containerd and kubelets", s.startKubelets},
			step{"name service", s.startCoreDNS})
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		tell(step.say)
		if err := step.do(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *supervisor) makeMaster(context.Context) error {
	var err error
	if s.hub, err = makeSwitch(&s.cfg); err != nil {
		return err
	}
	master, err := makeNode(&s.cfg, s.hub, 0)
	if err != nil {
		return err
	}
	s.nodes = append(s.nodes, master)
	s.etcd = &process{
		name: "etcd", space: master.space, log: LogPath(s.cfg.Name, "etcd"), env: hostEnvironment(),
		argv: []string{filepath.Join(binDir, labExecutable), "etcd-server", "--dir", "/run/etcd",
			"--listen", s.cfg.etcdURL(), "--listen", EtcdEndpoint(s.cfg.Name)},
	}
	s.controller = &process{
		name: "controller", space: master.space, log: LogPath(s.cfg.Name, "controller"), env: hostEnvironment(),
		argv: []string{filepath.Join(binDir, twillExecutable), "controller",
			"--etcd-endpoints", s.cfg.etcdURL(), "--service-cidr", join(s.cfg.serviceNets())},
	}
	return s.etcd.start()
}

func (s *supervisor) makeNodes(context.Context) error {
	for i := 1; i < s.cfg.Nodes; i++ {
		n, err := makeNode(&s.cfg, s.hub, i)
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, n)
	}
	var err error
	s.outside, err = makeHost(&s.cfg, s.hub, "outside", outsideHost, furniture{
		mark: mark(s.cfg.Name) + "/outside", executables: s.cfg.Executables,
	})
	return err
}

// fillStore waits for etcd, and writes what a cluster needs from its first
// moment.
func (s *supervisor) fillStore(ctx context.Context) error {
	if err := s.etcd.await(s.etcdListens, startPatience); err != nil {
		return err
	}
	var err error
	s.store, err = etcd.Open(ctx, etcd.Config{Endpoints: []string{EtcdEndpoint(s.cfg.Name)}, Logger: s.log})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	objects := []api.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceDefault}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: systemNamespace}},
		s.cfg.nameService(),
	}
	for _, p := range s.cfg.Pools {
		name := "default-ipv4"
		if p.Addr().Is6() {
			name = "default-ipv6"
		}
		objects = append(objects, &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: api.IPPoolSpec{CIDR: p.String(), NATOutgoing: true}})
	}
	for _, obj := range objects {
		api.Default(obj)
		if _, err := s.store.Create(ctx, obj); err != nil {
			return fmt.Errorf("write %s %s: %w", api.KindOf(obj).Name, api.KeyOf(obj), err)
		}
	}
	return nil
}

func (s *supervisor) startControlPlane(ctx context.Context) error {
	if err := s.etcd.await(s.etcdListens, startPatience); err != nil {
		return err
	}
	var err error
	if s.kubernetes, err = newKubernetes(&s.cfg, s.nodes[0]); err != nil {
		return err
	}
	return s.kubernetes.start(ctx, s.nodes[0])
}

func (s *supervisor) startKubelets(ctx context.Context) error {
	if err := startRegistry(&s.cfg, s.outside, s.log); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := s.kubernetes.makeKubelet(n); err != nil {
			return err
		}
	}
	return s.kubernetes.startKubelets(ctx, s.nodes)
}

func (s *supervisor) startCoreDNS(context.Context) error {
	return s.kubernetes.apply(s.nodes[0], coreDNS)
}

func (s *supervisor) etcdListens() bool {
	c, err := net.Dial("unix", filepath.Join(dir(s.cfg.Name), "etcd.sock"))
	if err == nil {
		c.Close()
	}
	return err == nil
}

func (c *Config) nameService() *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: dnsService, Labels: map[string]string{"k8s-app": "kube-dns"}},
		Spec: corev1.ServiceSpec{
			Selector:  map[string]string{"k8s-app": "kube-dns"},
			ClusterIP: dnsAddress4.String(),
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53},
			},
		},
	}
	for _, a := range c.nameServers() {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, a.String())
	}
	if c.DualStack {
		policy := corev1.IPFamilyPolicyRequireDualStack
		svc.Spec.IPFamilyPolicy = &policy
		svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	}
	return svc
}

func (s *supervisor) startTwill(context.Context) error {
	if err := s.controller.start(); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := n.agent.start(); err != nil {
			return err
		}
	}
	for _, n := range s.nodes {
		if err := n.agent.await(n.ready, startPatience); err != nil {
			return err
		}
	}
	return nil
}

// startDNS attaches the name server's pod, whose sockets this process holds, and
// waits until each node reaches it by the address of its service: then fabric
// and services work everywhere.
func (s *supervisor) startDNS(ctx context.Context) error {
	labels := map[string]string{"k8s-app": "kube-dns"}
	p, err := newPod(&s.cfg, s.nodes[0], systemNamespace, dnsPod, labels, []Port{{Name: "dns", Port: 53}})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.pods[api.Key{Namespace: systemNamespace, Name: dnsPod}] = p
	s.mu.Unlock()

	var packets net.PacketConn
	var stream net.Listener
	err = p.space.Do(func() (err error) {
		if packets, err = net.ListenPacket("udp", ":53"); err != nil {
			return err
		}
		stream, err = net.Listen("tcp", ":53")
		return err
	})
	if err != nil {
		return fmt.Errorf("open the name server's sockets: %w", err)
	}
	zone := nameserver.NewZone(clusterName)
	go zone.Follow(ctx, s.store)
	go zone.Serve(ctx, packets, stream, s.log)
	return s.awaitDNS()
}

func (s *supervisor) awaitDNS() error {
	deadline := time.Now().Add(startPatience)
	name := fmt.Sprintf("%s.%s.svc.%s.", dnsService, systemNamespace, clusterName)
	query := new(dns.Msg).SetQuestion(name, dns.TypeA)
	for _, n := range s.nodes {
		for _, server := range s.cfg.nameServers() {
			for {
				err := ask(n.space, query, net.JoinHostPort(server.String(), "53"))
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("%s does not reach the name server's pod at %s: %w", n.name, server, err)
				}
			}
		}
	}
	return nil
}

// ask sends a query from within a space.
func ask(from *space.Space, query *dns.Msg, server string) error {
	var c net.Conn
	err := from.Do(func() (err error) { c, err = net.Dial("udp", server); return err })
	if err != nil {
		return err
	}
	defer c.Close()
	client := dns.Client{Timeout: 100 * time.Millisecond}
	reply, _, err := client.ExchangeWithConn(query, &dns.Conn{Conn: c})
	if err == nil && len(reply.Answer) == 0 {
		err = fmt.Errorf("the answer is %s", dns.RcodeToString[reply.Rcode])
	}
	if err != nil {
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

// takeDown ends all processes of the lab; with the last of them the namespaces
// go.
func (s *supervisor) takeDown() {
	if err := killAll(s.cfg.Name, killPatience); err != nil {
		s.log.Error("take the lab down", "error", err)
	}
	if s.store != nil {
		s.store.Close()
	}
}

// Supervise holds the lab of this name, whose directory Up has made, until it is
// told to end. It writes its progress to told: lines of text, of which the last
// is "ready"; if it ends without, it failed.
func Supervise(ctx context.Context, name string, told *os.File, log *slog.Logger) error {
	cfg, err := Load(name)
	if err != nil {
		return err
	}
	// Commands are looked up as they are seen inside.
	if err := os.Setenv("PATH", searchPath); err != nil {
		return err
	}
	s := &supervisor{cfg: cfg, log: log, pods: map[api.Key]*pod{}, namespaces: map[string]bool{}}
	defer s.takeDown()
	// Nobody may be there any more to be told.
	tell := func(line string) { _, _ = fmt.Fprintln(told, line) }
	listener, err := net.Listen("unix", socketPath(name))
	if err != nil {
		return fmt.Errorf("listen for commands: %w", err)
	}
	defer listener.Close()
	up := make(chan error, 1)
	go func() { up <- s.bringUp(ctx, tell) }()
	select {
	case err := <-up:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		// What is half made ends with this process.
		return ctx.Err()
	}
	s.serve(listener)
	tell("ready")
	told.Close()
	<-ctx.Done()
	return nil
}
