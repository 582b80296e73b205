// Command conformance runs Kubernetes' own end-to-end tests of the network, which
// "make conformance" builds, on a lab whose network is Twill, and prints what came
// of each as a table. It fails when one of them does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/lab"
)

// group is some of the tests, by what their names match.
type group struct{ focus, skip string }

var groups = map[string]group{
	"conformance": {focus: `\[sig-network\].*\[Conformance\]`},
	"policy":      {focus: `\[sig-network\].*NetworkPolicy`},
	// Some of each, in a few minutes.
	"brief": {focus: `\[sig-network\].*(serve a basic endpoint|functioning NodePort|session affinity work for service with type clusterIP|` +
		`ExternalName to NodePort|DNS for the cluster|no conflict between pods with same hostPort|intra-pod communication: http|` +
		`except clause while egress|overlapping podSelectors|default-deny-all|specified together|ingress access on one named port|` +
		`PodSelector and NamespaceSelectors|using UDP.*default-deny-ingress)`, skip: `\[Provider:`},
	// What is skipped has a group of its own; or takes what a lab has not, such as
	// a cloud, a second family or kube-proxy; or breaks nodes over SSH.
	"network": {focus: `\[sig-network\]`, skip: `\[Conformance\]|NetworkPolicy|\[Disruptive\]|\[Alpha\]|\[Provider:|` +
		`\[Feature:(IPv6DualStack|Ingress|KubeProxy\w*|LoadBalancer|Networking-\w+|PerformanceDNS|OffByDefault)\]`},
}

// externalIP is what a test gives to a Service. Agents take none by default, since
// whoever may make Services could take anybody's address.
const externalIP = "203.0.113.250/32"

// patience bounds each step before the tests.
const patience = 5 * time.Minute

type options struct {
	cfg      lab.Config
	group    string
	chosen   group
	manifest []string
	out      string
}

func main() {
	o := options{manifest: []string{"deploy/crds", "deploy/twill.yaml"}}
	names := strings.Join(slices.Sorted(maps.Keys(groups)), ", ")
	flag.StringVar(&o.cfg.Name, "lab", "conformance", "name of the lab")
	flag.IntVar(&o.cfg.Nodes, "nodes", 3, "how many nodes it has")
	flag.StringVar(&o.cfg.Kubernetes, "kubernetes", "", "directory of Kubernetes' programs, as make conformance fills it")
	flag.StringVar(&o.cfg.Executables, "bin", "bin", "directory of Twill's executables and its image")
	flag.BoolVar(&o.cfg.KubeProxy, "kube-proxy", false, "have Kubernetes' own kube-proxy serve Services (make kubernetes PROGRAMS=kube-proxy)")
	flag.StringVar(&o.group, "group", "conformance", "which tests: "+names)
	flag.StringVar(&o.chosen.focus, "focus", "", "a pattern of names in place of the group's")
	flag.StringVar(&o.chosen.skip, "skip", "", "a pattern of names in place of what the group skips")
	flag.StringVar(&o.out, "o", "bin/conformance", "directory of logs and JUnit files, one a group")
	flag.Parse()
	g, ok := groups[o.group]
	if !ok || flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "error: the groups are %s; see -help\n", names)
		os.Exit(2)
	}
	if o.chosen.focus == "" {
		o.chosen.focus = g.focus
	}
	if o.chosen.skip == "" {
		o.chosen.skip = g.skip
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	out, err := filepath.Abs(filepath.Join(o.out, o.group))
	if err != nil {
		return err
	}
	// What an earlier run wrote would be taken for this one's.
	if err := errors.Join(os.RemoveAll(out), os.MkdirAll(out, 0o755)); err != nil {
		return err
	}
	began := time.Now()
	say := func(what string) { fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(began).Seconds(), what) }
	if err := lab.Up(ctx, o.cfg, say); err != nil {
		return err
	}
	defer func() {
		_, e := lab.Down(o.cfg.Name)
		err = errors.Join(err, e)
	}()
	client, err := lab.Dial(o.cfg.Name)
	if err != nil {
		return err
	}
	defer client.Close()
	s := &suite{client, out, say}
	say("Twill")
	if err := s.install(ctx, o.manifest); err != nil {
		return err
	}
	say("tests: their log is " + s.file("log"))
	ended := s.run(ctx, o.chosen)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	specs, err := readJUnit(s.file("junit_01.xml"))
	if err != nil {
		return errors.Join(ended, err)
	}
	if failed := tell(os.Stdout, specs); failed > 0 {
		return fmt.Errorf("%d of %d tests failed: see %s", failed, len(specs), s.file("log"))
	}
	return ended
}

// suite is the tests and the cluster that they are for.
type suite struct {
	*lab.Client
	out string
	say func(string)
}

func (s *suite) file(name string) string { return filepath.Join(s.out, name) }

func (s *suite) install(ctx context.Context, manifests []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	apply := []string{"apply"}
	for _, m := range manifests {
		path, err := filepath.Abs(m)
		if err != nil {
			return err
		}
		apply = append(apply, "-f", path)
	}
	steps := [][]string{
		apply,
		{"patch", "configmap", "-n", "kube-system", "twill-config", "--type=merge", "-p", `{"data":{"TWILL_EXTERNAL_IPS":"` + externalIP + `"}}`},
		{"rollout", "restart", "-n", "kube-system", "daemonset/twill-agent"},
		{"rollout", "status", "-n", "kube-system", "daemonset/twill-agent", "--timeout", patience.String()},
		{"wait", "node", "--all", "--for=condition=Ready", "--timeout", patience.String()},
		{"rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout", patience.String()},
	}
	for i := range s.Config.Nodes { // tests of zones want three, with two nodes each
		steps = append(steps, []string{"label", "node", lab.NodeName(i), fmt.Sprintf("topology.kubernetes.io/zone=zone%d", i%3)})
	}
	for _, args := range steps {
		argv, err := s.Config.Kubectl(args)
		if err != nil {
			return err
		}
		cmd, err := s.Command(ctx, lab.Node("master"), argv...)
		if err != nil {
			return err
		}
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(said)))
		}
	}
	return nil
}

// run runs tests on the master.
func (s *suite) run(ctx context.Context, g group) error {
	skip := g.skip
	if !hasSCTP() {
		s.say("this kernel has no SCTP sockets: tests of SCTP are left out")
		skip = strings.TrimPrefix(skip+"|SCTP", "|")
	}
	kubectl, err := s.Config.Kubectl(nil)
	if err != nil {
		return err
	}
	cmd, err := s.Command(ctx, lab.Node("master"), filepath.Join(s.Config.Kubernetes, "e2e.test"),
		"--kubeconfig", kubectl[len(kubectl)-1], "--kubectl-path", kubectl[0], "--provider=skeleton", "--report-dir", s.out,
		"--ginkgo.v", "--ginkgo.no-color", "--ginkgo.silence-skips", "--ginkgo.focus", g.focus, "--ginkgo.skip", skip)
	if err != nil {
		return err
	}
	log, err := os.Create(s.file("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = &progress{log: log, say: s.say}, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the tests ended with %w: see %s", err, s.file("log"))
	}
	return nil
}

func hasSCTP() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}
