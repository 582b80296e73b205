package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/lab/tool"
	"github.com/twill-net/twill/test/testlab"
)

// cluster is a dual-stack lab of three nodes with the pods of a test on it.
type cluster struct {
	*testlab.Lab
	tasks     map[string]string       // of places
	addresses map[string][]netip.Addr // of places, and of Services as svc/NAMESPACE/NAME
	ports     map[string]uint16       // that have names
	serves    map[string]bool         // svc/NAMESPACE/NAME:PORT/tcp|udp
}

// pod is a pod to be run; it serves on all its ports over TCP and UDP.
type pod struct {
	name   string // NAMESPACE/NAME
	node   string
	labels map[string]string
	ports  []lab.Port
}

// newCluster brings a lab up with these pods. Nodes and the host outside serve on
// the given ports.
func newCluster(t *testing.T, pods []pod, hostPorts ...int) *cluster {
	t.Helper()
	return newClusterOf(t, lab.Config{Nodes: 3, DualStack: true}, pods, hostPorts...)
}

func newClusterOf(t *testing.T, cfg lab.Config, pods []pod, hostPorts ...int) *cluster {
	t.Helper()
	c := &cluster{
		Lab:   testlab.Up(t, cfg),
		tasks: map[string]string{}, addresses: map[string][]netip.Addr{}, ports: map[string]uint16{}, serves: map[string]bool{},
	}
	c.addHost(t, "outside", c.Config.OutsideAddresses(), hostPorts)
	for i, name := range c.Config.NodeNames() {
		c.addHost(t, "node/"+name, c.Config.NodeAddresses(i), hostPorts)
	}
	for _, p := range pods {
		c.addPod(t, p)
	}
	return c
}

func (c *cluster) addPod(t *testing.T, p pod) {
	t.Helper()
	namespace, name, _ := strings.Cut(p.name, "/")
	made, err := c.Run(lab.RunRequest{Namespace: namespace, Name: name, Replicas: 1, Node: p.node, Labels: p.labels, Ports: p.ports})
	if err != nil {
		t.Fatal(err)
	}
	c.addresses[p.name] = made[0].Addresses
	c.tasks[p.name] = c.Task(t, lab.Pod(namespace, name))
}

// addHost serves from this process on sockets of a node or the host outside.
func (c *cluster) addHost(t *testing.T, name string, addrs []netip.Addr, ports []int) {
	t.Helper()
	c.addresses[name], c.tasks[name] = addrs, c.Task(t, place(name))
	id := tool.Identity{Name: name}
	for _, a := range addrs {
		for _, port := range ports {
			address := netip.AddrPortFrom(a, uint16(port)).String()
			err := space.In(c.tasks[name], func() error {
				stream, err := net.Listen("tcp", address)
				if err != nil {
					return err
				}
				packets, err := net.ListenPacket("udp", address)
				if err != nil {
					return err
				}
				server := &http.Server{Handler: id}
				t.Cleanup(func() { server.Close(); packets.Close() })
				go func() { _ = server.Serve(stream) }()
				go id.Echo(packets, func(net.Addr) net.Addr { return packets.LocalAddr() })
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// twill calls twill and fails the test if it fails.
func (c *cluster) twill(t *testing.T, input string, args ...string) string {
	t.Helper()
	out, err := c.Twill(t.Context(), input, args...)
	if err != nil {
		t.Fatalf("twill %v", err)
	}
	return out
}

// apply writes manifests, in which ${PLACE@4} and ${PLACE@6} stand for a place's
// addresses, ${POD block@4} for the block that a pod's address is of, and
// ${pods@4} for the pods' pool.
func (c *cluster) apply(t *testing.T, manifests string) {
	t.Helper()
	c.twill(t, c.fill(t, manifests), "apply", "-f", "-")
}

// blockHostBits are those of an address that differ within a block.
const blockHostBits = 6

func (c *cluster) fill(t *testing.T, manifests string) string {
	t.Helper()
	return os.Expand(manifests, func(word string) string {
		name, family, _ := strings.Cut(word, "@")
		name, block := strings.CutSuffix(name, " block")
		ofFamily := func(a netip.Addr) bool { return a.Is6() == (family == "6") }
		if name == "pods" {
			i := slices.IndexFunc(c.Config.Pools, func(p netip.Prefix) bool { return ofFamily(p.Addr()) })
			return c.Config.Pools[i].String()
		}
		i := slices.IndexFunc(c.addresses[name], ofFamily)
		if i < 0 {
			t.Errorf("nothing stands for ${%s}", word)
			return ""
		}
		a := c.addresses[name][i]
		if block {
			return netip.PrefixFrom(a, a.BitLen()-blockHostBits).Masked().String()
		}
		return a.String()
	})
}

// removePolicies deletes all policies.
func (c *cluster) removePolicies(t *testing.T) {
	t.Helper()
	c.twill(t, "", "delete", "networkpolicies", "--all", "-A")
}

// addService makes a Service in front of the pods with the labels and waits for
// its cluster IPs.
func (c *cluster) addService(t *testing.T, name, spec string) *corev1.Service {
	t.Helper()
	namespace, service, _ := strings.Cut(name, "/")
	c.apply(t, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: %s}\nspec:\n  ipFamilyPolicy: PreferDualStack\n%s", service, namespace, spec))
	st, err := c.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var made *corev1.Service
	testlab.Eventually(t, patience, func() error {
		obj, err := st.Get(t.Context(), api.ServiceKind, api.Key{Namespace: namespace, Name: service})
		if err != nil {
			return err
		}
		made = obj.(*corev1.Service)
		if len(made.Spec.ClusterIPs) < 2 || made.Spec.Type == corev1.ServiceTypeNodePort && made.Spec.Ports[0].NodePort == 0 {
			return fmt.Errorf("service %s has not got its addresses: %v", name, made.Spec)
		}
		return nil
	})
	for _, text := range made.Spec.ClusterIPs {
		c.addresses["svc/"+name] = append(c.addresses["svc/"+name], netip.MustParseAddr(text))
	}
	for _, p := range made.Spec.Ports {
		c.serves[fmt.Sprintf("svc/%s:%d/%s", name, p.Port, strings.ToLower(string(p.Protocol)))] = true
	}
	return made
}
