package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/etcd"
	"github.com/twill-net/twill/store/kube"
	"github.com/twill-net/twill/store/memory"
	"github.com/twill-net/twill/test/golden"
)

// unclosed is a store that outlives the commands that close it.
type unclosed struct{ store.Store }

func (unclosed) Close() error { return nil }

// terminal runs commands against one store.
type terminal struct {
	store  *memory.Store
	labs   []string
	config etcd.Config  // of the last OpenStore
	kube   *kube.Config // of the last OpenStore, if it was Kubernetes'
	stdin  string
}

func newTerminal() *terminal { return &terminal{store: memory.New()} }

func (term *terminal) session(env map[string]string) *Session {
	return &Session{
		version: "v0.1.0",
		now:     func() time.Time { return time.Now().Add(5 * time.Minute) },
		getenv:  func(name string) string { return env[name] },
		labs:    func() ([]string, error) { return term.labs, nil },
		open: func(_ context.Context, c etcd.Config) (store.Store, error) {
			term.config = c
			return unclosed{term.store}, nil
		},
		openKube: func(_ context.Context, c kube.Config) (store.Store, error) {
			term.kube = &c
			return unclosed{term.store}, nil
		},
	}
}

func (term *terminal) run(ctx context.Context, out, errOut io.Writer, env map[string]string, args ...string) int {
	root := newRoot(term.session(env))
	root.SetIn(strings.NewReader(term.stdin))
	return run(ctx, root, args, out, errOut)
}

// output is what a command prints, with its exit code unless that is 0.
func (term *terminal) output(env map[string]string, args ...string) string {
	var out, errOut bytes.Buffer
	code := term.run(context.Background(), &out, &errOut, env, args...)
	text := out.String() + errOut.String()
	if code != ExitOK {
		text += fmt.Sprintf("[exit %d]\n", code)
	}
	return text
}

var (
	uids      = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	goVersion = regexp.MustCompile(`\(go[^,]*, [^)]*\)`)
)

// TestStories: each testdata/*.story has command lines after "$ " and below
// each what it prints. All of a story run against one store; the clock of the
// bubble stands still.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.story")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".story"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { tell(t, file) })
		})
	}
}

func tell(t *testing.T, file string) {
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	term := newTerminal()
	var got strings.Builder
	for line := range strings.Lines(string(want)) {
		command, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		env := map[string]string{}
		words := splitWords(command)
		for words[0] != "twill" {
			name, value, _ := strings.Cut(words[0], "=")
			env[name], words = value, words[1:]
		}
		text := uids.ReplaceAllString(term.output(env, words[1:]...), "UID")
		text = goVersion.ReplaceAllString(text, "(GO)")
		got.WriteString(line + text)
	}
	golden.Check(t, file, got.String())
}

// splitWords splits at spaces outside single quotes.
func splitWords(line string) []string {
	var words []string
	for i, part := range strings.Split(strings.TrimSpace(line), "'") {
		if i%2 == 1 {
			words = append(words, part)
		} else {
			words = append(words, strings.Fields(part)...)
		}
	}
	return words
}

func TestUnreachableStore(t *testing.T) {
	term := newTerminal()
	term.store.SetDown(true)
	for _, args := range [][]string{
		{"get", "pods"}, {"get", "pods", "x"}, {"get", "pods", "-w"}, {"get", "nodes", "-o", "yaml"},
		{"describe", "nodes"}, {"apply", "-f", "testdata/cluster.yaml"}, {"delete", "pods", "x"},
		{"delete", "ns", "x"}, {"label", "pods", "x", "a=b"}, {"fabric", "get"}, {"fabric", "set", "vxlan"},
		{"create", "namespace", "x"},
	} {
		text := term.output(nil, args...)
		if !strings.Contains(text, store.ErrUnavailable.Error()) || !strings.HasSuffix(text, "[exit 3]\n") || strings.Count(text, "error: ") != 1 {
			t.Errorf("%v: %s", args, text)
		}
	}
}

func TestApplyFromStandardInput(t *testing.T) {
	term := newTerminal()
	term.stdin = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"
	if got := term.output(nil, "apply", "-f", "-"); got != "namespace/a created\n" {
		t.Errorf("got %s", got)
	}
	term.stdin = "kind: {"
	want := "error: -: document 1: not valid YAML: line 1: did not find expected node content\n[exit 1]\n"
	if got := term.output(nil, "apply", "-f", "-"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	term.stdin = "# nothing\n"
	if got := term.output(nil, "apply", "-f", "-"); got != "error: no objects in [-]\n[exit 1]\n" {
		t.Errorf("got %s", got)
	}
}

// TestRoundTrip: what get prints, apply takes, and nothing has changed; after
// all was deleted, it brings the same back.
func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerminal()
		term.output(nil, "apply", "-f", "testdata/cluster.yaml")
		kinds := "ns,nodes,pools,blocks,pods,svc,eps,netpol"
		before := term.output(nil, "get", kinds, "-A", "-o", "yaml")
		term.stdin = before
		for line := range strings.Lines(term.output(nil, "apply", "-f", "-")) {
			if !strings.HasSuffix(line, " unchanged\n") {
				t.Error(line)
			}
		}
		if got := term.output(nil, "delete", "-f", "-"); strings.Contains(got, "error") {
			t.Error(got)
		}
		term.output(nil, "apply", "-f", "-")
		after := term.output(nil, "get", kinds, "-A", "-o", "yaml")
		changing := regexp.MustCompile(`(?m)^ +(uid|resourceVersion|generation): .*$`)
		if diff := cmp.Diff(changing.ReplaceAllString(before, ""), changing.ReplaceAllString(after, "")); diff != "" {
			t.Errorf("(-before +after)\n%s", diff)
		}
	})
}

func TestConflict(t *testing.T) {
	term := newTerminal()
	term.output(nil, "create", "namespace", "a")
	term.stdin = term.output(nil, "get", "ns", "a", "-o", "yaml")
	term.output(nil, "label", "ns", "a", "x=y")
	got := term.output(nil, "apply", "-f", "-")
	if !strings.Contains(got, "changed meanwhile") || !strings.HasSuffix(got, "[exit 1]\n") {
		t.Errorf("got %s", got)
	}
}

// TestUnreadableObject: what somebody else wrote into the store hides nothing,
// and can be deleted.
func TestUnreadableObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerminal()
		term.output(nil, "apply", "-f", "testdata/dir", "-n", "shop")
		term.output(nil, "create", "namespace", "other")
		term.store.Corrupt(api.NamespaceKind, api.Key{Name: "other"})
		want := "NAME   AGE\nshop   5m\n" +
			"error: Namespace other is in the store and can't be read: what is stored is no Namespace\n[exit 1]\n"
		if diff := cmp.Diff(want, term.output(nil, "get", "ns")); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if got, want := term.output(nil, "delete", "ns", "other"), "namespace/other deleted\n"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestConnection(t *testing.T) {
	lab := func(name string) string { return "/run/twill-lab/" + name + "/etcd.sock" }
	for name, tt := range map[string]struct {
		labs []string
		env  map[string]string
		args []string
		want string // endpoints, or the error
	}{
		"default":         {want: "http://127.0.0.1:2379"},
		"one lab":         {labs: []string{lab("demo")}, want: "unix:///run/twill-lab/demo/etcd.sock"},
		"several labs":    {labs: []string{lab("a"), lab("b")}, want: "error: several labs run on this machine: choose one with --lab (a, b)"},
		"lab by flag":     {labs: []string{lab("a"), lab("b")}, args: []string{"--lab", "b"}, want: "unix:///run/twill-lab/b/etcd.sock"},
		"lab by variable": {labs: []string{lab("a"), lab("b")}, env: map[string]string{"TWILL_LAB": "b"}, want: "unix:///run/twill-lab/b/etcd.sock"},
		"no such lab":     {labs: []string{lab("a")}, args: []string{"--lab", "b"}, want: `error: there is no lab "b" on this machine (running: a)`},
		"variable":        {labs: []string{lab("a")}, env: map[string]string{"TWILL_ETCD_ENDPOINTS": "http://e1:2379,http://e2:2379"}, want: "http://e1:2379 http://e2:2379"},
		"lab by flag, endpoints by variable": {labs: []string{lab("a")}, args: []string{"--lab", "a"},
			env: map[string]string{"TWILL_ETCD_ENDPOINTS": "http://e1:2379"}, want: "unix:///run/twill-lab/a/etcd.sock"},
		"kubeconfig by flag":     {labs: []string{lab("a")}, args: []string{"--kubeconfig", "k"}, want: "kube k"},
		"kubeconfig by variable": {labs: []string{lab("a")}, env: map[string]string{"TWILL_KUBECONFIG": "k"}, want: "kube k"},
		"context by flag":        {args: []string{"--kubeconfig", "k", "--context", "c"}, env: map[string]string{"TWILL_CONTEXT": "d"}, want: "kube k c"},
		"context by variable":    {args: []string{"--kubeconfig", "k"}, env: map[string]string{"TWILL_CONTEXT": "d"}, want: "kube k d"},
		"context of nothing":     {args: []string{"--context", "c"}, want: "error: --context is one of a kubeconfig, and there is none: say --kubeconfig, too"},
		"in a pod":               {env: map[string]string{"KUBERNETES_SERVICE_HOST": "10.1.0.1"}, want: "kube"},
		"in a pod, etcd":         {env: map[string]string{"KUBERNETES_SERVICE_HOST": "10.1.0.1"}, args: []string{"--etcd-endpoints", "http://e1:2379"}, want: "http://e1:2379"},
		"two stores by flag": {args: []string{"--kubeconfig", "k", "--etcd-endpoints", "http://e1:2379"},
			want: "error: --etcd-endpoints and --kubeconfig exclude each other: there is one store (flag --etcd-endpoints, flag --kubeconfig)"},
		"two stores by variable": {env: map[string]string{"TWILL_KUBECONFIG": "k", "TWILL_ETCD_ENDPOINTS": "http://e1:2379"},
			want: "error: --etcd-endpoints and --kubeconfig exclude each other: there is one store (environment TWILL_ETCD_ENDPOINTS, environment TWILL_KUBECONFIG)"},
		"lab and store by flag": {labs: []string{lab("a")}, args: []string{"--kubeconfig", "k", "--lab", "a"},
			want: "error: --kubeconfig and --lab exclude each other: there is one store (flag --kubeconfig, flag --lab)"},
		"kubeconfig by flag, endpoints by variable": {args: []string{"--kubeconfig", "k"}, env: map[string]string{"TWILL_ETCD_ENDPOINTS": "http://e1:2379"}, want: "kube k"},
		"flag wins": {env: map[string]string{"TWILL_ETCD_ENDPOINTS": "http://e1:2379"}, args: []string{"--etcd-endpoints", "http://e2:2379"}, want: "http://e2:2379"},
	} {
		term := newTerminal()
		term.labs = tt.labs
		var out, errOut bytes.Buffer
		code := term.run(context.Background(), &out, &errOut, tt.env, append([]string{"get", "ns"}, tt.args...)...)
		got := strings.Join(term.config.Endpoints, " ")
		if term.kube != nil {
			got = strings.TrimRight("kube "+term.kube.Kubeconfig+" "+term.kube.Context, " ")
		}
		if code != ExitOK {
			got = strings.TrimSpace(errOut.String())
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
	term := newTerminal()
	term.output(map[string]string{"TWILL_ETCD_KEY": "k", "TWILL_ETCD_USERNAME": "u"}, "get", "ns", "--etcd-cert", "c", "--etcd-cacert", "a", "--etcd-password-file", "p")
	want := etcd.Config{Endpoints: []string{"http://127.0.0.1:2379"}, CAFile: "a", CertFile: "c", KeyFile: "k", Username: "u", PasswordFile: "p"}
	if diff := cmp.Diff(want, term.config); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestNotInTheLab: what runs in a cluster does not join a lab that happens to
// run on this machine.
func TestNotInTheLab(t *testing.T) {
	term := newTerminal()
	term.labs = []string{"/run/twill-lab/a/etcd.sock"}
	for _, args := range [][]string{{"controller"}, {"controller", "--lab", "a"}} {
		var out, errOut bytes.Buffer
		code := term.run(context.Background(), &out, &errOut, nil, args...)
		want := "error: the store would be that of lab a, whose nodes have agents and a controller of their own: say --etcd-endpoints or --kubeconfig\n"
		if code != ExitUsage || errOut.String() != want {
			t.Errorf("%v: %d %s, want %d %s", args, code, errOut.String(), ExitUsage, want)
		}
	}
}

// TestOpenFails: what etcd.Open refuses is a failure with its reason.
func TestOpenFails(t *testing.T) {
	term := newTerminal()
	s := term.session(nil)
	s.open = func(context.Context, etcd.Config) (store.Store, error) { return nil, errors.New("no such file") }
	var out, errOut bytes.Buffer
	if code := run(context.Background(), newRoot(s), []string{"get", "ns"}, &out, &errOut); code != ExitFailed || errOut.String() != "error: no such file\n" {
		t.Errorf("%d %s", code, errOut.String())
	}
}
