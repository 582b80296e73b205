package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/test/testlab"
)

// changes are what may happen while policies are in force.
var changes = []struct {
	name string
	test func(*testing.T, *cluster)
}{
	{"labels of pods change", labelsOfPods},
	{"labels of namespaces change", labelsOfNamespaces},
	{"a policy is changed and deleted", policyIsChanged},
	{"established connections survive a new deny", establishedSurvive},
	{"a new pod is never without its policies", newPodIsCovered},
	{"invalid policies are refused", invalidAreRefused},
}

const fromFrontend = "  - from: [{podSelector: {matchLabels: {role: frontend}}}]"

func labelsOfPods(t *testing.T, c *cluster) {
	c.apply(t, toDB(fromFrontend))
	c.expect(t, "frontend -> db:6379", "neighbour -> db:6379")
	c.twill(t, "", "label", "pod", "neighbour", "role=frontend")
	c.twill(t, "", "label", "pod", "frontend", "role-")
	c.expect(t, "neighbour -> db:6379", "frontend -> db:6379")
	// The pods that the policy is for.
	c.twill(t, "", "label", "pod", "db", "role=none", "--overwrite")
	c.expect(t, "frontend neighbour myproject/client -> db:6379 db:5978", "")
	c.twill(t, "", "label", "pod", "db", "role=db", "--overwrite")
	c.twill(t, "", "label", "pod", "frontend", "role=frontend")
	c.twill(t, "", "label", "pod", "neighbour", "role-")
	c.expect(t, "frontend -> db:6379", "neighbour -> db:6379")
}

func labelsOfNamespaces(t *testing.T, c *cluster) {
	c.apply(t, toDB("  - from: [{namespaceSelector: {matchLabels: {project: myproject}}}]"))
	c.expect(t, "myproject/client -> db:6379", "elsewhere/far elsewhere/insider frontend -> db:6379")
	c.twill(t, "", "label", "ns", "elsewhere", "project=myproject")
	c.expect(t, "myproject/client elsewhere/far elsewhere/insider -> db:6379", "frontend -> db:6379")
	c.twill(t, "", "label", "ns", "myproject", "project-")
	c.expect(t, "elsewhere/far elsewhere/insider -> db:6379", "myproject/client frontend -> db:6379")
	c.twill(t, "", "label", "ns", "elsewhere", "project-")
	c.twill(t, "", "label", "ns", "myproject", "project=myproject")
	c.expect(t, "myproject/client -> db:6379", "elsewhere/far elsewhere/insider frontend -> db:6379")
}

func policyIsChanged(t *testing.T, c *cluster) {
	c.apply(t, toDB(fromFrontend+"\n    ports: [{port: 6379}]"))
	c.expect(t, "frontend -> db:6379", "frontend -> db:8080\nneighbour -> db:6379")
	c.apply(t, toDB(fromFrontend+"\n    ports: [{port: 8080}]"))
	c.expect(t, "frontend -> db:8080", "frontend -> db:6379\nneighbour -> db:8080")
	c.apply(t, toDB("  - from: [{podSelector: {matchLabels: {tier: back}}}]"))
	c.expect(t, "neighbour -> db:8080 db:6379", "frontend -> db:6379 db:8080")
	c.twill(t, "", "delete", "networkpolicy", "to-db")
	c.expect(t, "frontend neighbour myproject/client -> db:8080 db:6379", "")
}

// establishedSurvive holds a TCP connection and a UDP flow of each family while
// new ones are denied.
func establishedSurvive(t *testing.T, c *cluster) {
	var old []func() error
	for _, to := range []string{"default/db", "svc/default/db"} {
		for _, a := range c.addresses[to] {
			at := netip.AddrPortFrom(a, 6379)
			stream := c.dial(t, "default/frontend", "tcp", at)
			answers := bufio.NewReader(stream)
			datagrams := c.dial(t, "default/frontend", "udp", at)
			old = append(old, func() error { return fetch(stream, answers) }, func() error { return testlab.Ask(datagrams, patience) })
		}
	}
	check := func(when string) {
		for i, again := range old {
			if err := again(); err != nil {
				t.Errorf("connection %d, %s: %v", i, when, err)
			}
		}
	}
	check("before")
	c.apply(t, denyIngress+denyEgress)
	c.expect(t, "", "frontend -> db:6379 db:6379/udp")
	check("after")
}

func (c *cluster) dial(t *testing.T, from, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	var conn net.Conn
	err := space.In(c.tasks[from], func() (err error) {
		conn, err = net.DialTimeout(network, to.String(), patience)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// fetch asks for a page on a connection that stays.
func fetch(conn net.Conn, answers *bufio.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(answers, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// newPodIsCovered looks at a pod's first packets: nothing is tried twice.
func newPodIsCovered(t *testing.T, c *cluster) {
	c.apply(t, denyIngress+denyEgress+toDB(fromFrontend))
	c.expect(t, "", "neighbour -> db:6379")
	c.addPod(t, pod{"default/new", "node02", map[string]string{"role": "db"}, []lab.Port{{Port: 80}}})
	defer func() {
		if _, err := c.Remove(lab.RemoveRequest{Namespace: "default", Names: []string{"new"}}); err != nil {
			t.Error(err)
		}
	}()
	flows := append(
		c.flows(t, "neighbour myproject/client node/node01 -> new:80 new:80/udp\nnew -> elsewhere/far:80 node/node02:80 outside:80", timeout),
		c.flows(t, "node/node02 -> new:80", open)...)
	for _, wrong := range c.differences(flows, true) {
		t.Error(wrong)
	}
	c.twill(t, "", "delete", "networkpolicy", "default-deny-egress")
	c.expect(t, "frontend -> new:80 new:80/udp", "neighbour -> new:80")
}

func invalidAreRefused(t *testing.T, c *cluster) {
	for _, rules := range []string{
		"  - ports: [{port: 10, endPort: 9}]",
		"  - ports: [{port: http, endPort: 90}]",
		"  - ports: [{endPort: 90}]",
		"  - ports: [{port: 70000}]",
		"  - ports: [{port: 80, protocol: ICMP}]",
		"  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]",
		"  - from: [{ipBlock: {cidr: 10.0.0.0}}]",
		"  - from: [{}]",
		"  - from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]",
		"  - from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]",
		"  - form: []",
	} {
		if _, err := c.Twill(t.Context(), toDB(rules), "apply", "-f", "-"); err == nil {
			t.Errorf("accepted: %s", rules)
			c.removePolicies(t)
		}
	}
	c.expect(t, "neighbour -> db:6379", "")
}
