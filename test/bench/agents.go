package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
)

const (
	echoPort = 7000
	// A probe is sent so often until it is answered: the resolution.
	probeEvery    = time.Millisecond
	probePatience = 10 * time.Second
)

// cluster is a lab with a guard on each node: a pod that answers nobody but pods
// with the label role=new.
type cluster struct {
	*lab.Client
	nodes   []string
	plugins []*plugin
	guards  []netip.Addr
	probes  []net.PacketConn // on each node
	open    []net.PacketConn
}

// agents measures how soon a new pod on one node is known on all others: to
// their routes, by a probe from each other node to the pod, and to their
// policies, by a probe from the pod to each other node's guard.
func (b *bench) agents() error {
	nodes, pods := pick(b, 20, 4), pick(b, 100, 8)
	l, err := b.lab(lab.Config{Nodes: nodes})
	if err != nil {
		return err
	}
	defer l.Close()
	c := &cluster{Client: l, nodes: l.Config.NodeNames()}
	defer c.close()
	if err := c.prepare(b.ctx); err != nil {
		return err
	}
	var reached, covered []float64
	for i := range pods {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		r, v, err := c.newPod(i, i%nodes)
		if err != nil {
			return fmt.Errorf("new pod %d on %s: %w", i, c.nodes[i%nodes], err)
		}
		reached, covered = append(reached, r), append(covered, v)
	}
	b.report.add("from ADD's return until all other nodes reach the pod, p50", median(reached), "ms", nil)
	b.report.add("from ADD's return until all other nodes reach the pod, p99", percentile(reached, 99), "ms", atMost(50))
	b.report.add("from ADD's return until a policy on all other nodes covers the pod, p50", median(covered), "ms", nil)
	b.report.add("from ADD's return until a policy on all other nodes covers the pod, p99", percentile(covered, 99), "ms", atMost(50))
	memory, err := c.agentMemory()
	b.report.add(fmt.Sprintf("resident memory of an agent among %d", nodes), memory, "MiB", nil)
	return err
}

func (c *cluster) prepare(ctx context.Context) error {
	s, err := c.Store(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Create(ctx, guardPolicy()); err != nil {
		return err
	}
	for i, name := range c.nodes {
		p, err := twill(c.Client, name)
		if err != nil {
			return err
		}
		c.plugins = append(c.plugins, p)
		probe, err := c.listen(lab.Node(name), 0)
		if err != nil {
			return err
		}
		c.probes = append(c.probes, probe)
		guard := fmt.Sprintf("guard-%d", i)
		pods, err := c.Run(lab.RunRequest{Namespace: "default", Name: guard, Labels: map[string]string{"role": "guard"}, Node: name, Replicas: 1, Idle: true})
		if err != nil {
			return err
		}
		c.guards = append(c.guards, pods[0].Address())
		answers, err := c.listen(lab.Pod("default", guard), echoPort)
		if err != nil {
			return err
		}
		go echo(answers)
	}
	return nil
}

func guardPolicy() *networkingv1.NetworkPolicy {
	p := policyOf(0, echoPort)
	p.Namespace, p.Name = "default", "guard"
	p.Spec.PodSelector = metav1.LabelSelector{MatchLabels: map[string]string{"role": "guard"}}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
		{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": "new"}}},
	}}}
	return p
}

// listen opens a socket at a place of the lab.
func (c *cluster) listen(at lab.Place, port int) (conn net.PacketConn, err error) {
	entrance, err := c.Enter(at)
	if err != nil {
		return nil, err
	}
	err = space.In(entrance.Task, func() (err error) {
		conn, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		return err
	})
	if err == nil {
		c.open = append(c.open, conn)
	}
	return conn, err
}

func (c *cluster) close() {
	for _, conn := range c.open {
		conn.Close()
	}
}

// echo answers until the socket is closed.
func echo(conn net.PacketConn) {
	buffer := make([]byte, 64)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteTo(buffer[:n], from) // a lost answer is asked for again
		}
	}
}

// newPod attaches a pod and returns how long it took from then, in ms, until the
// last of the other nodes reached it, and until the last of their guards answered
// it.
func (c *cluster) newPod(number, on int) (reached, covered float64, err error) {
	var answers net.PacketConn
	outward := make([]net.PacketConn, len(c.nodes))
	pod, err := newSandbox(func() (err error) {
		if answers, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", echoPort)); err != nil {
			return err
		}
		for i := range outward {
			if outward[i], err = net.ListenPacket("udp4", ":0"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	defer pod.file.Close()
	defer func() {
		for _, conn := range append(outward, answers) {
			conn.Close()
		}
	}()
	go echo(answers)

	name := podName{"default", fmt.Sprintf("new-%d", number), map[string]string{"role": "new"}}
	var address netip.Addr
	var attached time.Time
	err = c.plugins[on].onNode(func() (err error) {
		_, address, err = c.plugins[on].add(pod, fmt.Sprintf("new-%d", number), name)
		attached = time.Now()
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	in, out := make([]float64, len(c.nodes)), make([]float64, len(c.nodes))
	failed := make(chan error, 2*len(c.nodes))
	var wg sync.WaitGroup
	probe := func(took *float64, conn net.PacketConn, to netip.Addr) {
		wg.Go(func() {
			if err := ask(conn, to, uint32(number)+1); err != nil {
				failed <- err
			}
			*took = milliseconds(time.Since(attached))
		})
	}
	for i := range c.nodes {
		if i != on {
			probe(&in[i], c.probes[i], address)
			probe(&out[i], outward[i], c.guards[i])
		}
	}
	wg.Wait()
	select {
	case err := <-failed:
		return 0, 0, err
	default:
	}
	err = c.plugins[on].onNode(func() error { _, err := c.plugins[on].del(pod, name); return err })
	return percentile(in, 100), percentile(out, 100), err
}

// ask sends until it is answered.
func ask(conn net.PacketConn, to netip.Addr, number uint32) error {
	question, answer := binary.BigEndian.AppendUint32(nil, number), make([]byte, 64)
	target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, echoPort))
	for deadline := time.Now().Add(probePatience); time.Now().Before(deadline); {
		next := time.Now().Add(probeEvery)
		// Until there is a route, sending fails.
		_, sendErr := conn.WriteTo(question, target)
		if err := conn.SetReadDeadline(next); err != nil {
			return err
		}
		for {
			n, _, err := conn.ReadFrom(answer)
			if err == nil && n == 4 && binary.BigEndian.Uint32(answer) == number {
				return nil
			}
			if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
		}
		if sendErr != nil {
			time.Sleep(time.Until(next))
		}
	}
	return fmt.Errorf("%s does not answer within %s", to, probePatience)
}

// agentMemory is the median of what the agents have resident, in MiB.
func (c *cluster) agentMemory() (float64, error) {
	status, err := c.Status()
	if err != nil {
		return 0, err
	}
	var all []float64
	for _, n := range status.Nodes {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", n.Agent.PID))
		if err != nil {
			return 0, err
		}
		pages, err := strconv.ParseFloat(strings.Fields(string(text))[1], 64)
		if err != nil {
			return 0, err
		}
		all = append(all, pages*float64(os.Getpagesize())/(1<<20))
	}
	return median(all), nil
}
