package lab_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/lab/tool"
)

const (
	patience = 3 * time.Second
	webPort  = "8080" // on pods and nodes alike
)

// party is a pod or a node: something that sends and answers.
type party struct {
	name  string
	task  string
	addrs []netip.Addr
}

// TestAllToAll checks that each pod and each node reaches every other over TCP,
// UDP and ICMP, and is seen with its own address.
func TestAllToAll(t *testing.T) {
	for _, dualStack := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "dual-stack"}[dualStack], func(t *testing.T) {
			c := up(t, 3, dualStack)
			parties := append(runPods(t, c, 4), serveOnNodes(t, c)...)
			families := []bool{false}
			if dualStack {
				families = append(families, true)
			}
			forgetTunnels(t, c)
			for _, v6 := range families {
				var wait sync.WaitGroup
				for _, from := range parties {
					wait.Go(func() {
						for _, to := range parties {
							overTCP(t, from, to, v6)
							overUDP(t, from, to, v6)
						}
					})
				}
				wait.Wait()
				overICMP(t, parties, v6)
			}
			untracked(t, c)
			listable(t, c)
		})
	}
}

func runPods(t *testing.T, c *lab.Client, perNode int) []party {
	t.Helper()
	var parties []party
	for _, node := range c.Config.NodeNames() {
		pods, err := c.Run(lab.RunRequest{Namespace: "default", Name: "on-" + node, Node: node, Replicas: perNode, Ports: []lab.Port{{Port: 8080}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pods {
			entrance, err := c.Enter(lab.Pod(p.Namespace, p.Name))
			if err != nil {
				t.Fatal(err)
			}
			parties = append(parties, party{p.Name, entrance.Task, p.Addresses})
		}
	}
	return parties
}

// forgetTunnels removes what was tracked of tunnels before: at the start of a
// cluster a node's packets may come before the other has its rules.
func forgetTunnels(t *testing.T, c *lab.Client) {
	t.Helper()
	for _, name := range c.Config.NodeNames() {
		entrance, err := c.Enter(lab.Node(name))
		if err == nil {
			err = space.In(entrance.Task, func() error {
				filter := &netlink.ConntrackFilter{}
				_ = filter.AddProtocol(unix.IPPROTO_UDP) // fails for a filter that has one only
				_ = filter.AddPort(netlink.ConntrackOrigDstPort, api.DefaultVXLANPort)
				_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
				return err
			})
		}
		if err != nil {
			t.Fatalf("conntrack of %s: %v", name, err)
		}
	}
}

// untracked checks that the tunnels' outer packets, of which there were many by
// now, are in no node's connection tracking.
func untracked(t *testing.T, c *lab.Client) {
	t.Helper()
	for _, name := range c.Config.NodeNames() {
		entrance, err := c.Enter(lab.Node(name))
		if err != nil {
			t.Fatal(err)
		}
		err = space.In(entrance.Task, func() error {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			if len(flows) == 0 && err == nil {
				err = errors.New("nothing is tracked at all")
			}
			for _, f := range flows {
				if f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.DstPort == api.DefaultVXLANPort {
					t.Errorf("%s tracks a tunnel's packets: %s", name, f)
				}
			}
			return err
		})
		if err != nil {
			t.Errorf("conntrack of %s: %v", name, err)
		}
	}
}

// serveOnNodes serves the page from this process, on sockets of each node.
func serveOnNodes(t *testing.T, c *lab.Client) []party {
	t.Helper()
	var parties []party
	for i, name := range c.Config.NodeNames() {
		entrance, err := c.Enter(lab.Node(name))
		if err != nil {
			t.Fatal(err)
		}
		id := tool.Identity{Name: name}
		n := party{name, entrance.Task, c.Config.NodeAddresses(i)}
		for _, a := range n.addrs {
			address := net.JoinHostPort(a.String(), webPort)
			err := space.In(n.task, func() error {
				stream, err := net.Listen("tcp", address)
				if err != nil {
					return err
				}
				packets, err := net.ListenPacket("udp", address)
				if err != nil {
					return err
				}
				server := &http.Server{Handler: id}
				go func() { _ = server.Serve(stream) }()
				go id.Echo(packets, func(net.Addr) net.Addr { return packets.LocalAddr() })
				t.Cleanup(func() { server.Close(); packets.Close() })
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		parties = append(parties, n)
	}
	return parties
}

// dial opens a connection from within a party.
func dial(from party, network string, to netip.Addr) (conn net.Conn, err error) {
	err = space.In(from.task, func() (err error) {
		conn, err = net.DialTimeout(network, net.JoinHostPort(to.String(), webPort), patience)
		return err
	})
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
	}
	return conn, err
}

func overTCP(t *testing.T, from, to party, v6 bool) {
	conn, err := dial(from, "tcp", pick(to.addrs, v6))
	if err != nil {
		t.Errorf("TCP %s → %s: %v", from.name, to.name, err)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Errorf("TCP %s → %s: %v", from.name, to.name, err)
		return
	}
	text, err := io.ReadAll(response.Body)
	checkPage(t, "TCP", string(text), err, from, to, v6)
}

func overUDP(t *testing.T, from, to party, v6 bool) {
	conn, err := dial(from, "udp", pick(to.addrs, v6))
	if err != nil {
		t.Errorf("UDP %s → %s: %v", from.name, to.name, err)
		return
	}
	defer conn.Close()
	fmt.Fprint(conn, tool.AskPage)
	buffer := make([]byte, 1000)
	n, err := conn.Read(buffer)
	checkPage(t, "UDP", string(buffer[:n]), err, from, to, v6)
}

func checkPage(t *testing.T, protocol, page string, err error, from, to party, v6 bool) {
	seen := fmt.Sprintf("client:    %s\n", pick(from.addrs, v6))
	if from.name == to.name {
		seen = "client: " // a host may talk to itself from any of its addresses
	}
	if err != nil || !strings.HasPrefix(page, fmt.Sprintf("name:      %s\n", to.name)) || !strings.Contains(page, seen) {
		t.Errorf("%s %s → %s (own address %s): %v\n%s", protocol, from.name, to.name, pick(from.addrs, v6), err, page)
	}
}

// overICMP has every party send an echo request to every other. A raw socket of
// each sees the requests that come, with their source, and the answers.
func overICMP(t *testing.T, parties []party, v6 bool) {
	network, local, protocol := "ip4:icmp", "0.0.0.0", 1
	var request icmp.Type = ipv4.ICMPTypeEcho
	if v6 {
		network, local, protocol, request = "ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest
	}
	seen := make(chan string, 4*len(parties)*len(parties))
	wanted := map[string]bool{}
	sockets := make([]*icmp.PacketConn, len(parties))
	for i, p := range parties {
		err := space.In(p.task, func() (err error) { sockets[i], err = icmp.ListenPacket(network, local); return err })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { sockets[i].Close() })
		go listenICMP(sockets[i], protocol, p.name, seen)
	}
	for i, from := range parties {
		for j, to := range parties {
			if i == j {
				continue
			}
			what := from.name + " → " + to.name
			wanted[fmt.Sprintf("request %s from %s at %s", what, pick(from.addrs, v6), to.name)] = true
			wanted[fmt.Sprintf("answer %s from %s at %s", what, pick(to.addrs, v6), from.name)] = true
			message := icmp.Message{Type: request, Body: &icmp.Echo{ID: 1000 + i, Seq: j, Data: []byte(what)}}
			packet, err := message.Marshal(nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := sockets[i].WriteTo(packet, &net.IPAddr{IP: pick(to.addrs, v6).AsSlice()}); err != nil {
				t.Errorf("ICMP %s: %v", what, err)
			}
		}
	}
	deadline := time.After(patience)
	for len(wanted) > 0 {
		select {
		case event := <-seen:
			delete(wanted, event)
		case <-deadline:
			t.Fatalf("ICMP: these were not seen:\n%s", strings.Join(sorted(wanted), "\n"))
		}
	}
}

func listenICMP(socket *icmp.PacketConn, protocol int, name string, seen chan<- string) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if err != nil {
			return
		}
		message, err := icmp.ParseMessage(protocol, buffer[:n])
		if err != nil {
			continue
		}
		echo, ok := message.Body.(*icmp.Echo)
		if !ok {
			continue
		}
		kind := "request"
		if message.Type == ipv4.ICMPTypeEchoReply || message.Type == ipv6.ICMPTypeEchoReply {
			kind = "answer"
		}
		select {
		case seen <- fmt.Sprintf("%s %s from %s at %s", kind, echo.Data, from, name):
		default: // the test has ended
		}
	}
}

// listable checks that what the agents programmed can be read with the tool
// that people use.
func listable(t *testing.T, c *lab.Client) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Log("nft is not installed: rulesets are not listed")
		return
	}
	for _, node := range c.Config.NodeNames() {
		out, code := at(t, c, lab.Node(node), "nft", "list", "ruleset")
		if code != 0 || !strings.Contains(out, "table inet twill") {
			t.Errorf("nft list ruleset on %s: exit %d\n%s", node, code, out)
		}
	}
}
