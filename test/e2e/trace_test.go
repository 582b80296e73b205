package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/twill-net/twill/test/testlab"
	"github.com/twill-net/twill/trace"
)

// triplesPerRound is how many connections are tried with the same policies.
const triplesPerRound = 24

// hostPorts are where nodes and the host outside serve.
var hostPorts = []int{80, 5000}

// TestTraceAgreesWithPackets asks twill trace about random connections, with
// random policies, and sends packets.
func TestTraceAgreesWithPackets(t *testing.T) {
	first := *seed
	if first == 0 {
		first = rand.Uint64()
	}
	t.Logf("repeat with -seed %d -cases %d", first, *cases)
	r := rand.New(rand.NewPCG(first, first))
	w := &world{Rand: r, pods: worldPods(r)}
	w.cluster = newCluster(t, w.pods, hostPorts...)
	targets := w.addServices(t)

	verdicts := map[trace.Verdict]int{}
	for tried := 0; tried < *cases; {
		w.relabel(t)
		manifests := w.policies(t)
		w.apply(t, manifests)
		var round []triple
		for range min(triplesPerRound, *cases-tried) {
			round = append(round, w.triple(targets))
		}
		tried += len(round)
		round = w.settle(t, round)
		for _, x := range round {
			verdicts[x.report.Verdict]++
		}
		w.tell(t, round, manifests)
		w.listable(t)
		w.removePolicies(t)
	}
	t.Logf("verdicts: %v", verdicts)
	for _, v := range []trace.Verdict{trace.Allowed, trace.Denied, trace.Rejected} {
		if *cases >= 50 && verdicts[v] < *cases/50 {
			t.Errorf("of %d connections only %d are %s: the random world shows too little", *cases, verdicts[v], v)
		}
	}
	t.Run("a rejection that the kernel holds back", func(t *testing.T) {
		nobody := netip.AddrPortFrom(w.sameFamily("svc/a/nobody", netip.IPv4Unspecified()), 53)
		seen := make(chan string)
		const many = 12 // twice the burst of rejections that a destination gets
		for range many {
			go func() { seen <- testlab.Probe(w.tasks["a/0"], "udp", nobody, silence) }()
		}
		for range many {
			<-seen
		}
		if got := testlab.Probe(w.tasks["a/0"], "udp", nobody, patience); got != refused {
			t.Errorf("a patient asker met with %s, want %s", got, refused)
		}
	})
	t.Run("twill trace --probe", func(t *testing.T) {
		c := w.cluster
		if out := c.twill(t, "", "trace", "--probe", "-n", "a", "0", "pod/1:80"); !strings.Contains(out, "open: agrees") {
			t.Error(out)
		}
	})
}

// triple is a connection to be tried: what is asked and what is probed.
type triple struct {
	from      string
	namespace string // of the name asked for
	asked     string // TO as trace is asked
	at        netip.AddrPort
	network   string

	report *trace.Report
	seen   string
}

// target is something that can be connected to, as TO says it, on one of ports.
type target struct {
	name      string // in addresses
	namespace string
	asked     string
	ports     []uint16
	inside    bool // can't be reached from outside
}

// addServices makes Services in both namespaces and returns all targets.
func (w *world) addServices(t *testing.T) []target {
	t.Helper()
	targets := []target{{name: "outside", ports: worldPorts}}
	for _, p := range w.pods {
		namespace, name, _ := strings.Cut(p.name, "/")
		targets = append(targets, target{p.name, namespace, "pod/" + name, worldPorts, true})
	}
	nodePorts := []uint16{}
	for _, port := range hostPorts {
		nodePorts = append(nodePorts, uint16(port))
	}
	for _, namespace := range []string{"a", "b"} {
		for _, s := range worldServices {
			made := w.addService(t, namespace+"/"+s.name, "  "+s.spec+worldServicePorts)
			targets = append(targets, target{"svc/" + namespace + "/" + s.name, namespace, "svc/" + s.name, []uint16{53, 80, 81, 82, 83}, true})
			for _, p := range made.Spec.Ports {
				if p.NodePort != 0 {
					nodePorts = append(nodePorts, uint16(p.NodePort))
				}
			}
		}
	}
	for _, name := range w.Config.NodeNames() {
		// As many times as their many ports deserve.
		for range 6 {
			targets = append(targets, target{"node/" + name, "", "node/" + name, nodePorts, false})
		}
	}
	return targets
}

// triple is a random connection that is possible: the host outside has no
// routes into the cluster.
func (w *world) triple(targets []target) triple {
	from := pick(w, "outside", "node/master", "node/node01", "node/node02")
	if w.chance(65) {
		from = pick(w, w.pods...).name
	}
	for {
		to := pick(w, targets...)
		if to.name == from || from == "outside" && (to.inside || to.name == "outside") {
			continue
		}
		addr := pick(w, w.addresses[to.name]...)
		at := netip.AddrPortFrom(addr, pick(w, to.ports...))
		asked := to.asked
		if addr.Is6() || asked == "" { // a name means IPv4 where there is both
			asked = "[" + addr.String() + "]"
		}
		network := pick(w, "tcp", "tcp", "udp")
		return triple{from: from, namespace: to.namespace, asked: fmt.Sprintf("%s:%d/%s", asked, at.Port(), network), at: at, network: network}
	}
}

// settle asks and probes until both agree, or for so long that it can't be for
// want of time that they don't.
func (w *world) settle(t *testing.T, round []triple) []triple {
	t.Helper()
	began := time.Now()
	var settled []triple
	for len(round) > 0 {
		w.ask(t, round)
		var open []triple
		for _, x := range round {
			if !w.agrees(x) && time.Since(began) < patience {
				open = append(open, x)
			} else {
				settled = append(settled, x)
			}
		}
		round = open
	}
	return settled
}

// asksAtOnce bounds the twill processes.
const asksAtOnce = 4

func (w *world) ask(t *testing.T, round []triple) {
	t.Helper()
	var wait sync.WaitGroup
	turns := make(chan struct{}, asksAtOnce)
	flows := make([]flow, len(round))
	for i := range round {
		x := &round[i]
		flows[i] = flow{from: x.from, network: x.network, at: x.at}
		wait.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			from, namespace := x.from, x.namespace
			if from == "outside" {
				from = w.sameFamily("outside", x.at.Addr()).String()
			}
			if namespace == "" {
				namespace = "default"
			}
			out, err := w.Twill(t.Context(), "", "trace", "-n", namespace, from, x.asked, "-o", "json")
			x.report = &trace.Report{}
			if err == nil {
				err = json.Unmarshal([]byte(out), x.report)
			}
			if err != nil {
				t.Errorf("trace %s %s: %v", from, x.asked, err)
			}
		})
	}
	wait.Wait()
	for i, seen := range w.probeAll(flows) {
		x := &round[i]
		x.seen = seen
		if seen == timeout && x.report.Verdict != trace.Denied && !w.agrees(*x) {
			// Perhaps the machine is busy and the answer was only late.
			x.seen = testlab.Probe(w.tasks[x.from], x.network, x.at, patience)
		}
	}
}

func (w *world) sameFamily(name string, as netip.Addr) netip.Addr {
	i := slices.IndexFunc(w.addresses[name], func(a netip.Addr) bool { return a.Is6() == as.Is6() })
	return w.addresses[name][i]
}

// agrees compares what was said with what was seen. Where packets pass, whether
// somebody listens decides.
func (w *world) agrees(x triple) bool {
	switch x.report.Verdict {
	case trace.Denied:
		return x.seen == timeout
	case trace.Dropped:
		return x.seen == timeout || x.seen == forbidden
	case trace.Rejected:
		return x.seen == refused || x.seen == forbidden
	}
	if x.report.Address != x.at.Addr() {
		return false
	}
	return slices.ContainsFunc(x.report.Ways, func(way trace.Way) bool {
		switch {
		case !way.Allowed:
			return x.seen == timeout
		case w.listens(way.To):
			return x.seen == open
		}
		return x.seen == refused
	})
}

func (w *world) listens(at netip.AddrPort) bool {
	for _, p := range w.pods {
		if slices.Contains(w.addresses[p.name], at.Addr()) {
			for _, port := range p.ports {
				if port.Port == int(at.Port()) {
					return true
				}
			}
			return false
		}
	}
	return slices.Contains(hostPorts, int(at.Port()))
}

// tell prints what does not agree as a table, and the policies.
func (w *world) tell(t *testing.T, round []triple, manifests string) {
	t.Helper()
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FROM\tTO\tADDRESS\tPACKETS MET WITH\tTRACE SAYS")
	wrong := 0
	for _, x := range round {
		if w.agrees(x) {
			continue
		}
		wrong++
		fmt.Fprintf(table, "%s\t%s %s\t%s\t%s\t%s\n", x.from, x.namespace, x.asked, x.at, x.seen, x.report.Sentence)
		if s := x.report.Service; s != nil {
			fmt.Fprintf(table, "\t\t\t\t%s (%s) on %s, endpoints %v\n", s.Service, s.Class, s.Node, ends(x.report.Ways))
		}
	}
	table.Flush()
	if wrong > 0 {
		places := ""
		for _, name := range slices.Sorted(maps.Keys(w.addresses)) {
			places += fmt.Sprintf("%s %v\n", name, w.addresses[name])
		}
		pods := w.twill(t, "", "get", "pods", "-A", "-o", "wide", "--show-labels")
		t.Errorf("%d of %d disagree:\n%s\nwith these policies:\n%s\n%s\n%s", wrong, len(round), text.String(), manifests, pods, places)
	}
}

func ends(ways []trace.Way) []netip.AddrPort {
	var out []netip.AddrPort
	for _, way := range ways {
		out = append(out, way.To)
	}
	return out
}
