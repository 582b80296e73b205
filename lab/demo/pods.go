package demo

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/lab/tool"
)

// The devices by which packets leave a node.
const (
	tunnelDevice = "twill-vxlan"
	linkDevice   = "eth0"
)

// webPort is where the demo's web servers on nodes listen.
const webPort = "8080"

var podSteps = []step{
	{
		"A cluster of three nodes",
		"master, node01 and node02, each with a running agent",
		(*story).up,
	},
	{
		"Inside one pod, over localhost",
		"the pod's web server answers on 127.0.0.1",
		(*story).localhost,
	},
	{
		"Two pods on one node",
		"the server sees the client pod's own address",
		func(s *story, ctx context.Context) (string, error) { return s.podToPod(ctx, "one", "two") },
	},
	{
		"Pods on two nodes, by VXLAN",
		"the server sees the client pod's own address; the packets take the tunnel",
		(*story).acrossNodes,
	},
	{
		"Pods and nodes reach each other without NAT",
		"a node sees the pod's own address, a pod sees the node's own address",
		(*story).podsAndNodes,
	},
}

func (s *story) up(ctx context.Context) (string, error) {
	began := time.Now()
	if err := lab.Up(ctx, s.cfg, func(string) {}); err != nil {
		return "", err
	}
	var err error
	if s.client, err = lab.Dial(s.cfg.Name); err != nil {
		return "", err
	}
	status, err := s.client.Status()
	if err != nil {
		return "", err
	}
	var seen []string
	for _, n := range status.Nodes {
		if !n.Agent.Running {
			return "", fmt.Errorf("the agent of %s does not run: %s", n.Name, n.Agent.Ended)
		}
		seen = append(seen, fmt.Sprintf("%-6s  %s  agent running (pid %d)", n.Name, join(n.Addresses), n.Agent.PID))
	}
	if len(seen) != s.cfg.Nodes {
		err = fmt.Errorf("%d nodes", len(seen))
	}
	seen = append(seen, fmt.Sprintf("pods get addresses of %s; ready in %.2f s", join(s.client.Config.Pools), time.Since(began).Seconds()))
	return strings.Join(seen, "\n"), err
}

func join[T fmt.Stringer](items []T) string {
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = item.String()
	}
	return strings.Join(texts, ", ")
}

// run makes pods and remembers them by name.
func (s *story) run(r lab.RunRequest) error {
	r.Replicas = max(r.Replicas, 1)
	pods, err := s.client.Run(r)
	for _, p := range pods {
		s.pods[p.Name] = p
	}
	return err
}

func (s *story) place(pod string) lab.Place {
	return lab.Pod(s.pods[pod].Namespace, pod)
}

func (s *story) localhost(ctx context.Context) (string, error) {
	for name, node := range map[string]string{"one": "master", "two": "master", "three": "node01"} {
		if err := s.run(lab.RunRequest{Namespace: "default", Name: name, Node: node}); err != nil {
			return "", err
		}
	}
	page, err := s.page(ctx, s.place("one"), "127.0.0.1")
	return page.String(), err
}

// page is what a web server told.
type page struct{ from, name, node, client string }

func (p page) String() string {
	if p.name == "" {
		return ""
	}
	server := fmt.Sprintf("pod %s on %s", p.name, p.node)
	if p.name == p.node {
		server = "node " + p.node
	}
	return fmt.Sprintf("from %s: %s sees the client as %s", p.from, server, p.client)
}

// page fetches a page as a user would, with wget.
func (s *story) page(ctx context.Context, at lab.Place, address string) (page, error) {
	text, err := s.at(ctx, at, "wget", "-q", "-T", "2", "-O", "-", "http://"+address)
	if err != nil {
		return page{}, err
	}
	from := at.Pod + at.Node
	if from == "" {
		from = "outside"
	}
	p := page{from: from}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "name":
			p.name = value
		case "node":
			p.node = value
		case "client":
			p.client = value
		}
	}
	if p.name == "" {
		return p, fmt.Errorf("the page is not ours: %q", text)
	}
	return p, nil
}

// sees fetches the page at an address and checks which client address the
// server saw.
func (s *story) sees(ctx context.Context, at lab.Place, address string, want []netip.Addr) (string, error) {
	p, err := s.page(ctx, at, address)
	if err != nil {
		return "", err
	}
	client, err := netip.ParseAddr(p.client)
	if err != nil || !slices.Contains(want, client) {
		return p.String(), fmt.Errorf("the server sees %s instead of %s", p.client, join(want))
	}
	return p.String(), nil
}

func url(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

func (s *story) podToPod(ctx context.Context, client, server string) (string, error) {
	from, to := s.pods[client], s.pods[server]
	var seen []string
	for _, a := range to.Addresses {
		line, err := s.sees(ctx, s.place(client), url(a), from.Addresses)
		if line != "" {
			seen = append(seen, fmt.Sprintf("%s (its own address)", line))
		}
		if err != nil {
			return strings.Join(seen, "\n"), err
		}
	}
	return strings.Join(seen, "\n"), nil
}

func (s *story) acrossNodes(ctx context.Context) (string, error) {
	before, err := s.transmitted("master", tunnelDevice)
	if err != nil {
		return "", err
	}
	seen, err := s.podToPod(ctx, "one", "three")
	if err != nil {
		return seen, err
	}
	after, err := s.transmitted("master", tunnelDevice)
	if err != nil {
		return seen, err
	}
	seen += fmt.Sprintf("\n%s of master has sent %d packets", tunnelDevice, after-before)
	if after == before {
		return seen, fmt.Errorf("the packets did not take the tunnel")
	}
	return seen, nil
}

// onNode runs f in a node's network namespace.
func (s *story) onNode(node string, f func() error) error {
	entrance, err := s.client.Enter(lab.Node(node))
	if err != nil {
		return err
	}
	return space.In(entrance.Task, f)
}

// transmitted is how many packets a node's device has sent.
func (s *story) transmitted(node, device string) (packets uint64, err error) {
	err = s.onNode(node, func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("device %s of %s: %w", device, node, err)
		}
		packets = link.Attrs().Statistics.TxPackets
		return nil
	})
	return packets, err
}

// way is the device by which a node reaches an address.
func (s *story) way(node string, to netip.Addr) (device string, err error) {
	err = s.onNode(node, func() error {
		routes, err := netlink.RouteGet(net.IP(to.AsSlice()))
		if err != nil {
			return fmt.Errorf("route of %s to %s: %w", node, to, err)
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return err
		}
		device = link.Attrs().Name
		return nil
	})
	return device, err
}

func (s *story) podsAndNodes(ctx context.Context) (string, error) {
	end, err := s.serveOn(ctx, "node02")
	if err != nil {
		return "", err
	}
	defer end()
	var seen []string
	for i := range s.pods["one"].Addresses {
		node := url(s.client.Config.NodeAddresses(2)[i])
		line, err := s.sees(ctx, s.place("one"), node+":"+webPort, s.pods["one"].Addresses)
		seen = append(seen, line)
		if err != nil {
			return strings.Join(seen, "\n"), err
		}
		line, err = s.sees(ctx, lab.Node("node02"), url(s.pods["one"].Addresses[i]), s.client.Config.NodeAddresses(2))
		seen = append(seen, line)
		if err != nil {
			return strings.Join(seen, "\n"), err
		}
	}
	return strings.Join(seen, "\n"), nil
}

// serveOn starts a web server on a node and waits until it listens.
func (s *story) serveOn(ctx context.Context, node string) (end func(), err error) {
	cmd, err := s.client.Command(ctx, lab.Node(node), "web", "--port", webPort)
	if err != nil {
		return nil, err
	}
	listens, tell, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer listens.Close()
	cmd.Env = append(cmd.Env, tool.EnvReady+"=3", tool.EnvNode+"="+node)
	cmd.ExtraFiles = []*os.File{tell}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return nil, err
	}
	end = func() { stop(cmd) }
	if n, _ := listens.Read(make([]byte, 1)); n == 0 {
		end()
		return nil, fmt.Errorf("the web server on %s does not listen", node)
	}
	return end, nil
}

func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}
