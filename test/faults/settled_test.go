package faults

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/test/testlab"
)

// settled waits until the store tells of the pods that there are and no others,
// each with an address of its own from a block of its node, and of nothing that
// is wrong but the given conditions. It returns how long that took.
func (s *scene) settled(t *testing.T, conditions ...string) time.Duration {
	t.Helper()
	return testlab.Eventually(t, patience, func() error {
		if err := s.podsDiffer(t); err != nil {
			return err
		}
		return s.wrong(t, conditions)
	})
}

// podsDiffer is an error if the store, or a node, has other pods than there are.
func (s *scene) podsDiffer(t *testing.T) error {
	status, err := s.Status()
	if err != nil {
		return err
	}
	if err := s.endpointsDiffer(t, status.Pods); err != nil {
		return err
	}
	return s.devicesDiffer(t, status.Pods)
}

func (s *scene) endpointsDiffer(t *testing.T, pods []lab.PodStatus) error {
	blocks, err := s.blocks(t)
	if err != nil {
		return err
	}
	list, err := s.store.List(t.Context(), api.WorkloadEndpointKind, "")
	if err != nil {
		return err
	}
	stored := map[string]string{}
	for _, obj := range list.Items {
		w := obj.(*api.WorkloadEndpoint)
		stored[api.KeyOf(w).String()] = w.Spec.Node + " " + w.Spec.IPNetworks[0]
	}
	holders := map[netip.Addr]string{}
	for _, p := range pods {
		key := api.Key{Namespace: p.Namespace, Name: p.Name}.String()
		a := p.Address()
		if got, want := stored[key], fmt.Sprintf("%s %s", p.Node, netip.PrefixFrom(a, a.BitLen())); got != want {
			return fmt.Errorf("the store says of pod %s %q, not %q", key, got, want)
		}
		delete(stored, key)
		if other, taken := holders[a]; taken {
			return fmt.Errorf("%s and %s both have %s", other, key, a)
		}
		holders[a] = key
		if owner := ownerOf(blocks, a); owner != p.Node {
			return fmt.Errorf("%s of %s on %s is from a block of %q", a, key, p.Node, owner)
		}
	}
	if len(stored) > 0 {
		return fmt.Errorf("the store has endpoints of pods that are gone: %v", stored)
	}
	return nil
}

// devicesDiffer is an error if a node has more or fewer host ends than pods.
func (s *scene) devicesDiffer(t *testing.T, pods []lab.PodStatus) error {
	for _, node := range s.Config.NodeNames() {
		out, err := s.At(t.Context(), lab.Node(node), "ip", "-o", "link", "show", "type", "veth")
		if err != nil {
			return err
		}
		have, want := strings.Count(out, ": "+plan.VethPrefix), 0
		for _, p := range pods {
			if p.Node == node {
				want++
			}
		}
		if have != want {
			return fmt.Errorf("%s has %d pods and %d of their devices", node, want, have)
		}
	}
	return nil
}

// blocks are the claimed blocks and their nodes; that two overlap is an error.
func (s *scene) blocks(t *testing.T) (map[netip.Prefix]string, error) {
	list, err := s.store.List(t.Context(), api.IPAMBlockKind, "")
	if err != nil {
		return nil, err
	}
	blocks := map[netip.Prefix]string{}
	for _, obj := range list.Items {
		b := obj.(*api.IPAMBlock)
		prefix, err := netip.ParsePrefix(b.Spec.CIDR)
		if err != nil {
			return nil, err
		}
		for other, owner := range blocks {
			if other.Overlaps(prefix) {
				return nil, fmt.Errorf("block %s of %s overlaps %s", other, owner, prefix)
			}
		}
		blocks[prefix], _ = b.Owner()
	}
	return blocks, nil
}

func ownerOf(blocks map[netip.Prefix]string, a netip.Addr) string {
	for prefix, owner := range blocks {
		if prefix.Contains(a) {
			return owner
		}
	}
	return ""
}

// trouble is a condition as `twill status -o json` tells it.
type trouble struct{ Subject, Code, Detail string }

func (s *scene) conditions(t *testing.T) ([]trouble, error) {
	out, err := s.Twill(t.Context(), "", "status", "-o", "json") // its exit code tells of conditions, too
	var status struct{ Conditions []trouble }
	if e := json.Unmarshal([]byte(out), &status); e != nil {
		return nil, errors.Join(err, e)
	}
	return status.Conditions, nil
}

// wrong is an error if the cluster has a condition beside those that are
// expected, or lacks one of these.
func (s *scene) wrong(t *testing.T, expected []string) error {
	all, err := s.conditions(t)
	if err != nil {
		return err
	}
	missing := slices.Clone(expected)
	for _, c := range all {
		if !slices.Contains(expected, c.Code) {
			return fmt.Errorf("condition %s of %s: %s", c.Code, c.Subject, c.Detail)
		}
		missing = slices.DeleteFunc(missing, func(code string) bool { return code == c.Code })
	}
	if len(missing) > 0 {
		return fmt.Errorf("there is no condition %v", missing)
	}
	return nil
}

// asPlanned starts each agent anew, which must find the kernel as it plans it:
// an agent that has worked on through a fault and one that knows nothing of it
// agree.
func (s *scene) asPlanned(t *testing.T) {
	t.Helper()
	for _, node := range s.Config.NodeNames() {
		before, _ := s.State(t.Context(), node)
		s.control(t, lab.Stop, node)
		said := len(s.said(t, node))
		s.control(t, lab.Start, node)
		if n := s.writes(t, node); n != 0 {
			after, err := s.State(t.Context(), node)
			t.Errorf("the agent of %s, started anew, wrote %d objects: %s %v", node, n, cmp.Diff(before, after), err)
		}
		for line := range strings.Lines(s.said(t, node)[said:]) {
			// An address that stayed taken, a pod that nobody wrote down, and the like.
			if !strings.Contains(line, "level=INFO") || strings.Contains(line, "released the addresses") {
				t.Errorf("the agent of %s, started anew, said: %s", node, line)
			}
		}
	}
	s.expect(t, "client -> server-1 server-2", "stranger -> server-1 server-2")
}

// said is the log of a node's agent.
func (s *scene) said(t *testing.T, node string) string {
	t.Helper()
	text, err := os.ReadFile(lab.LogPath(s.Config.Name, "agent-"+node))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// writes is how many rules and routes a node's agent has written since it was
// started.
func (s *scene) writes(t *testing.T, node string) int {
	t.Helper()
	text, err := s.At(t.Context(), lab.Node(node), "wget", "-q", "-O", "-", lab.AgentMetrics)
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0, 0
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		var n int
		for _, area := range []string{"nftables", "rtnetlink"} {
			if _, err := fmt.Sscanf(lines.Text(), `twill_dataplane_writes_total{area="`+area+`"} %d`, &n); err == nil {
				sum, found = sum+n, found+1
			}
		}
	}
	if found != 2 {
		t.Fatalf("the agent of %s does not tell how much it wrote", node)
	}
	return sum
}

// serviceAddress is where a Service is, or "" if it has no address yet.
func serviceAddress(obj api.Object) string {
	spec := obj.(*corev1.Service).Spec
	if spec.ClusterIP == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", spec.ClusterIP, spec.Ports[0].Port)
}
