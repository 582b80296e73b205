package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/lab/tool"
	"github.com/twill-net/twill/test/testlab"
)

// Addresses on lo of node01: that of its load balancer, as a virtual address in
// front of nodes is, and one to which programs bind.
var (
	balancerAddrs = []netip.Addr{netip.MustParseAddr("203.0.113.91"), netip.MustParseAddr("2001:db8::91")}
	boundAddrs    = []netip.Addr{netip.MustParseAddr("192.168.200.1"), netip.MustParseAddr("fd00:192:168:200::1")}
)

// hostEndpoints is a Service in front of a program on a node.
const hostEndpoints = `
apiVersion: v1
kind: Service
metadata: {name: host}
spec: {type: LoadBalancer, ipFamilyPolicy: PreferDualStack, ports: [{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: host-4, labels: {kubernetes.io/service-name: host}}
addressType: IPv4
endpoints: [{addresses: ["${node/node02@4}"], nodeName: node02}]
ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: host-6, labels: {kubernetes.io/service-name: host}}
addressType: IPv6
endpoints: [{addresses: ["${node/node02@6}"], nodeName: node02}]
ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}]
`

// TestSourceOfServiceTraffic: on nodes like Vagrant's, whose default route and oldest
// device belong to a NAT with the same address everywhere, and with further addresses
// on lo, every client reaches every endpoint of a Service, and the endpoint sees the
// address to which its answer has to go.
func TestSourceOfServiceTraffic(t *testing.T) {
	web := []lab.Port{{Port: 80}}
	c := newClusterOf(t, lab.Config{Nodes: 3, DualStack: true, NAT: true}, []pod{
		{"default/client", "node01", map[string]string{"app": "client"}, web},
		{"default/on-master", "master", map[string]string{"app": "on-master"}, web},
		{"default/on-node01", "node01", map[string]string{"app": "on-node01"}, web},
		{"default/on-node02", "node02", map[string]string{"app": "on-node02"}, web},
	}, 8080)
	for _, name := range []string{"on-master", "on-node01", "on-node02"} {
		c.addService(t, "default/"+name, "  type: LoadBalancer\n  selector: {app: "+name+"}\n  ports: [{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}]\n")
	}
	c.apply(t, hostEndpoints)
	for _, a := range slices.Concat(balancerAddrs, boundAddrs) {
		c.must(t, "node/node01", "ip", "address", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "lo")
	}
	for i, net := range []string{"10.1.0.0/16", "fd00:10:1::/112"} {
		via := c.addresses["node/node01"][i].String()
		c.must(t, "outside", "ip", "route", "add", net, "via", via)
		c.must(t, "outside", "ip", "route", "add", balancerAddrs[i].String(), "via", via)
	}
	services := c.giveBalancerAddresses(t)

	for _, backEnd := range []string{"vxlan", "host-gw"} {
		t.Run(backEnd, func(t *testing.T) {
			c.twill(t, "", "fabric", "set", backEnd, "--only")
			for i, family := range []string{"IPv4", "IPv6"} {
				t.Run(family, func(t *testing.T) {
					asks := c.asksForServices(services, i)
					testlab.Eventually(t, 3*patience, func() error { return wrongAnswers(asks) })
					if err := wrongAnswers(asks); err != nil {
						t.Errorf("right at first, and then not: %v", err)
					}
				})
			}
		})
	}
	c.listable(t)
}

// giveBalancerAddresses gives each Service a load balancer: the same addresses, a port
// of its own each. It returns the Services once they have all that was asked for.
func (c *cluster) giveBalancerAddresses(t *testing.T) (out []*corev1.Service) {
	t.Helper()
	st, err := c.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for i, name := range []string{"on-master", "on-node01", "on-node02", "host"} {
		testlab.Eventually(t, patience, func() error {
			obj, err := st.Get(t.Context(), api.ServiceKind, api.Key{Namespace: "default", Name: name})
			if err != nil {
				return err
			}
			svc := obj.(*corev1.Service)
			if len(svc.Spec.ClusterIPs) < 2 || svc.Spec.Ports[1].NodePort == 0 {
				return fmt.Errorf("service %s has not got its addresses: %v", name, svc.Spec)
			}
			for j := range svc.Spec.Ports {
				svc.Spec.Ports[j].Port = int32(8000 + i)
			}
			svc.Status.LoadBalancer.Ingress = nil
			for _, a := range balancerAddrs {
				svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
			}
			if obj, err = st.Update(t.Context(), svc); err == nil {
				out = append(out, obj.(*corev1.Service))
			}
			return err
		})
	}
	return out
}

// ask is one request of a Service.
type ask struct {
	from, task string
	source     netip.Addr // to which the client's socket is bound; zero: none
	network    string
	to         netip.AddrPort
	what       string // to is
	seen       netip.Addr
	server     string
}

// asksForServices are all ways from each kind of client to each Service in one family,
// by index.
func (c *cluster) asksForServices(services []*corev1.Service, family int) (out []ask) {
	node, nat := c.addresses["node/node01"][family], c.Config.NATAddresses()[family]
	clients := []ask{
		{from: "outside", seen: node},
		{from: "node/node01", seen: node},
		{from: "node/node01", source: nat, seen: node},
		{from: "node/node01", source: boundAddrs[family], seen: node},
		{from: "node/node01", source: balancerAddrs[family], seen: node},
		{from: "default/client", seen: c.addresses["default/client"][family]},
	}
	for _, svc := range services {
		for j, network := range []string{"tcp", "udp"} {
			port := svc.Spec.Ports[j]
			for _, client := range clients {
				client.task, client.network, client.server = c.tasks[client.from], network, svc.Name
				if svc.Name == "host" {
					client.server = "node/node02"
				}
				for _, to := range []struct {
					what string
					addr netip.Addr
					port int32
				}{
					{"cluster IP", netip.MustParseAddr(svc.Spec.ClusterIPs[family]), port.Port},
					{"load balancer", balancerAddrs[family], port.Port},
					{"node port", node, port.NodePort},
				} {
					client.what, client.to = to.what, netip.AddrPortFrom(to.addr, uint16(to.port))
					out = append(out, client)
				}
			}
		}
	}
	return out
}

// wrongAnswers asks all at once.
func wrongAnswers(asks []ask) error {
	wrong := make([]string, len(asks))
	turns := make(chan struct{}, probesAtOnce/4) // these have to be answered in time
	var wait sync.WaitGroup
	for i, a := range asks {
		wait.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			page, err := a.page()
			if err != nil {
				wrong[i] = fmt.Sprintf("%s: %v", a, err)
			} else if server, seen := field(page, "name"), field(page, "client"); server != a.server || seen != a.seen.String() {
				wrong[i] = fmt.Sprintf("%s: %s sees %s, want %s to see %s", a, server, seen, a.server, a.seen)
			}
		})
	}
	wait.Wait()
	wrong = slices.DeleteFunc(wrong, func(s string) bool { return s == "" })
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return fmt.Errorf("%d of %d:\n  %s", len(wrong), len(asks), strings.Join(wrong, "\n  "))
}

func (a ask) String() string {
	from := a.from
	if a.source.IsValid() {
		from += fmt.Sprintf(" (%s)", a.source)
	}
	return fmt.Sprintf("%s → %s of %s, %s/%s", from, a.what, a.server, a.to, a.network)
}

// page is what the Service's endpoint answers.
func (a ask) page() (page string, err error) {
	dialer := net.Dialer{}
	if a.source.IsValid() && a.network == "tcp" {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.source, 0))
	} else if a.source.IsValid() {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.source, 0))
	}
	var conn net.Conn
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err = space.In(a.task, func() (err error) {
		conn, err = dialer.DialContext(ctx, a.network, a.to.String())
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	if a.network == "tcp" {
		client := http.Client{Transport: &http.Transport{
			DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		}}
		answer, err := client.Get("http://" + a.to.String())
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return string(text), err
	}
	if _, err := conn.Write([]byte(tool.AskPage)); err != nil {
		return "", err
	}
	buffer := make([]byte, 2048)
	n, err := conn.Read(buffer)
	return string(buffer[:n]), err
}

// field is a field of a page.
func field(page, name string) string {
	for line := range strings.Lines(page) {
		if key, value, _ := strings.Cut(line, ":"); key == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// must executes a program of the host in a place's network.
func (c *cluster) must(t *testing.T, at string, argv ...string) {
	t.Helper()
	if _, err := c.run(at, argv...); err != nil {
		t.Fatal(err)
	}
}
