package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/etcd"
	"github.com/twill-net/twill/store/kube"
)

const (
	defaultEndpoint = "http://127.0.0.1:2379"
	labSockets      = "/run/twill-lab/*/etcd.sock"
	labSupervisor   = "sock" // beside the store's socket
	labSource       = "lab " // and its name: where a setting comes from
)

// runningLabs lists the sockets of the stores of labs on this machine. A lab
// whose store is down still runs while its supervisor does; sockets on which
// nobody listens at all are what a crash left.
func runningLabs() ([]string, error) {
	sockets, err := filepath.Glob(labSockets)
	return slices.DeleteFunc(sockets, func(socket string) bool {
		return refused(socket) && refused(filepath.Join(filepath.Dir(socket), labSupervisor))
	}), err
}

// refused says whether nobody listens on a socket.
func refused(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// connection is how to reach the store, as typed.
type connection struct {
	endpoints, lab, kubeconfig, context      string
	apiServer                                string
	caFile, certFile, keyFile, user, passwdF string
	flags                                    *pflag.FlagSet
}

// option is one setting of the connection: --NAME or TWILL_NAME.
type option struct {
	name  string
	value func(*connection) *string
	help  string
}

var connectionOptions = []option{
	{"etcd-endpoints", func(c *connection) *string { return &c.endpoints }, "addresses of etcd, separated by commas: http://, https:// or unix://"},
	{"lab", func(c *connection) *string { return &c.lab }, "name of the lab on this machine whose store to use"},
	{"kubeconfig", func(c *connection) *string { return &c.kubeconfig }, "kubeconfig of the cluster whose API is the store; in a pod its service account"},
	{"context", func(c *connection) *string { return &c.context }, "context of the kubeconfig, in place of its current one"},
	{"api-server", func(c *connection) *string { return &c.apiServer }, "URL of the API server, in place of the kubeconfig's or, in a pod, of those that are found"},
	{"etcd-cacert", func(c *connection) *string { return &c.caFile }, "file with the authority that signed etcd's certificate"},
	{"etcd-cert", func(c *connection) *string { return &c.certFile }, "file with the client's certificate"},
	{"etcd-key", func(c *connection) *string { return &c.keyFile }, "file with the client's key"},
	{"etcd-username", func(c *connection) *string { return &c.user }, "etcd user"},
	{"etcd-password-file", func(c *connection) *string { return &c.passwdF }, "file whose first line is the user's password"},
}

func (o option) env() string { return "TWILL_" + strings.ToUpper(strings.ReplaceAll(o.name, "-", "_")) }

func (c *connection) register(flags *pflag.FlagSet) {
	c.flags = flags
	for _, o := range connectionOptions {
		flags.StringVar(o.value(c), o.name, "", o.help+" ("+o.env()+")")
	}
}

// inCluster is the kubeconfig of a pod: what its service account is given.
const inCluster = "in-cluster"

// The places of those settings of which one says where the store is.
const (
	settingEndpoints = iota
	settingLab
	settingKubeconfig
)

// resolve returns the effective settings: a flag wins over the environment,
// that over the cluster that this is a pod of, that over a running lab, that over
// the default.
func (s *Session) resolve() ([]Setting, error) {
	c := &s.connection
	settings := make([]Setting, len(connectionOptions))
	for i, o := range connectionOptions {
		settings[i] = Setting{Name: o.name, Source: "default", Help: o.help}
		if c.flags.Changed(o.name) {
			settings[i].Value, settings[i].Source = *o.value(c), "flag --"+o.name
		} else if v := s.getenv(o.env()); v != "" {
			settings[i].Value, settings[i].Source = v, "environment "+o.env()
		}
	}
	if err := c.oneStore(settings); err != nil {
		return nil, err
	}
	endpoints, lab, kubeconfig := &settings[settingEndpoints], &settings[settingLab], &settings[settingKubeconfig]
	switch {
	case endpoints.Value != "" || kubeconfig.Value != "":
		return settings, nil
	case lab.Value == "" && s.getenv("KUBERNETES_SERVICE_HOST") != "":
		kubeconfig.Value, kubeconfig.Source = inCluster, "this pod"
		return settings, nil
	}
	sockets, err := s.labs()
	if err != nil {
		return nil, fmt.Errorf("look for labs: %w", err)
	}
	if len(sockets) > 1 && lab.Value == "" {
		return nil, usagef("several labs run on this machine: choose one with --lab (%s)", strings.Join(labNames(sockets), ", "))
	}
	for _, socket := range sockets {
		if name := labName(socket); lab.Value == "" || lab.Value == name {
			endpoints.Value, endpoints.Source = "unix://"+socket, labSource+name
			return settings, nil
		}
	}
	if lab.Value != "" {
		running := "none is running"
		if len(sockets) > 0 {
			running = "running: " + strings.Join(labNames(sockets), ", ")
		}
		return nil, fmt.Errorf("there is no lab %q on this machine (%s)", lab.Value, running)
	}
	endpoints.Value = defaultEndpoint
	return settings, nil
}

// oneStore leaves one of the settings that say where the store is: what a flag
// says wins over the environment, and two that are said alike are an error.
func (c *connection) oneStore(settings []Setting) error {
	var flags, environment []*Setting
	for _, i := range []int{settingEndpoints, settingKubeconfig, settingLab} {
		switch setting := &settings[i]; {
		case c.flags.Changed(setting.Name):
			flags = append(flags, setting)
		case setting.Value != "":
			environment = append(environment, setting)
		}
	}
	given := environment
	if len(flags) > 0 {
		for _, setting := range environment {
			setting.Value, setting.Source = "", "overruled by --"+flags[0].Name
		}
		given = flags
	} else if len(given) > 1 && given[len(given)-1].Name == "lab" {
		given[len(given)-1].Value = "" // a lab is only looked for where nothing else is said
		given = given[:len(given)-1]
	}
	if len(given) > 1 {
		return usagef("--%s and --%s exclude each other: there is one store (%s, %s)",
			given[0].Name, given[1].Name, given[0].Source, given[1].Source)
	}
	return nil
}

func labName(socket string) string { return filepath.Base(filepath.Dir(socket)) }

func labNames(sockets []string) []string {
	names := make([]string, len(sockets))
	for i, socket := range sockets {
		names[i] = labName(socket)
	}
	return names
}

// OpenStore opens the store that the flags, the environment and running labs
// point to. The caller closes it. No connection is made yet: the first request
// tells whether the store can be reached.
func (s *Session) OpenStore(ctx context.Context) (store.Store, error) {
	settings, err := s.resolve()
	if err != nil {
		return nil, err
	}
	return s.openAt(ctx, settings, nil)
}

// OpenClusterStore is OpenStore for what runs in a cluster. It refuses a lab's
// store: an agent outside of the lab's nodes would make this machine one of them.
// log gets what becomes of the connection.
func (s *Session) OpenClusterStore(ctx context.Context, log *slog.Logger) (store.Store, error) {
	settings, err := s.resolve()
	if err != nil {
		return nil, err
	}
	if source := settings[settingEndpoints].Source; strings.HasPrefix(source, labSource) {
		return nil, usagef("the store would be that of %s, whose nodes have agents and a controller of their own: say --etcd-endpoints or --kubeconfig", source)
	}
	return s.openAt(ctx, settings, log)
}

func (s *Session) openAt(ctx context.Context, settings []Setting, log *slog.Logger) (store.Store, error) {
	value := map[string]string{}
	for _, setting := range settings {
		value[setting.Name] = setting.Value
	}
	if path := value["kubeconfig"]; (path == "" || path == inCluster) && s.connection.flags.Changed("context") {
		return nil, usagef("--context is one of a kubeconfig, and there is none: say --kubeconfig, too")
	}
	if path := value["kubeconfig"]; path != "" {
		if path == inCluster {
			path = ""
		}
		return s.openKube(ctx, kube.Config{Kubeconfig: path, Context: value["context"], Server: value["api-server"], Logger: log})
	}
	return s.open(ctx, etcd.Config{
		Endpoints: strings.Split(value["etcd-endpoints"], ","),
		CAFile:    value["etcd-cacert"], CertFile: value["etcd-cert"], KeyFile: value["etcd-key"],
		Username: value["etcd-username"], PasswordFile: value["etcd-password-file"],
	})
}
