package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/twill-net/twill/cli"
)

// option is one setting: --NAME or TWILL_NAME.
type option struct {
	name  string
	help  string
	value string // of the default; then the effective one
	from  string
}

// options are the agent's settings.
type options struct {
	list  []*option
	flags *pflag.FlagSet
}

func newOptions(flags *pflag.FlagSet) *options {
	d := DefaultConfig()
	o := &options{flags: flags, list: []*option{
		{name: "node-name", help: "name of this node; default the host's name"},
		{name: "node-ip", help: "this node's addresses, at most one of a family, separated by a comma; default what the kubelet says, else those of the device with the default route"},
		{name: "state-dir", value: d.StateDir, help: "directory of the journal of addresses"},
		{name: "run-dir", value: d.RunDir, help: "directory of the CNI socket"},
		{name: "cni-bin-dir", help: "where the container runtime looks for executables: twill-cni is put there; empty: it is not"},
		{name: "cni-conf-dir", help: "where the container runtime looks for network configuration: it is written there when pods can be attached; empty: it is not"},
		{name: "external-ips", help: "ranges in which Services may take external IPs, separated by commas; default none"},
		{name: "service-cidr", help: "ranges of cluster IPs, separated by commas: packets to those that no Service has are dropped; default what Kubernetes' ServiceCIDRs say"},
		{name: "addresses", value: d.Addresses, help: "node: pods get addresses of the node's spec.podCIDRs; pools: of any block of a pool; auto: of the node's where these lie in a pool"},
		{name: "services", value: d.Services, help: "on: this agent serves Services; off: another program on the node does, such as kube-proxy; auto: off where a kube-proxy is found"},
		{name: "metrics-address", value: d.MetricsAddress, help: "where /metrics and /healthz are served; empty: nowhere"},
		{name: "log-level", value: "info", help: "debug, info, warn or error"},
	}}
	for _, opt := range o.list {
		flags.String(opt.name, opt.value, fmt.Sprintf("%s (%s)", opt.help, opt.env()))
	}
	return o
}

func (o *option) env() string {
	return "TWILL_" + strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
}

// resolve finds the effective values: a flag wins over the environment, that
// over the default.
func (o *options) resolve(getenv func(string) string) map[string]string {
	values := map[string]string{}
	for _, opt := range o.list {
		opt.from = "default"
		if v := getenv(opt.env()); v != "" {
			opt.value, opt.from = v, "environment "+opt.env()
		}
		if o.flags.Changed(opt.name) {
			opt.value, _ = o.flags.GetString(opt.name)
			opt.from = "flag --" + opt.name
		}
		if opt.name == "node-name" && opt.value == "" {
			if host, err := os.Hostname(); err == nil {
				opt.value, opt.from = strings.ToLower(host), "the host's name"
			}
		}
		values[opt.name] = opt.value
	}
	return values
}

// settings are what `twill config explain` shows.
func (o *options) settings() []cli.Setting {
	o.resolve(os.Getenv)
	var out []cli.Setting
	for _, opt := range o.list {
		out = append(out, cli.Setting{Name: opt.name, Value: opt.value, Source: opt.from, Help: "agent: " + opt.help})
	}
	return out
}

func (o *options) config() (Config, slog.Level, error) {
	values := o.resolve(os.Getenv)
	c := Config{
		NodeName: values["node-name"], StateDir: values["state-dir"], RunDir: values["run-dir"],
		CNIBinDir: values["cni-bin-dir"], CNIConfDir: values["cni-conf-dir"], MetricsAddress: values["metrics-address"],
		Services: values["services"], Addresses: values["addresses"],
	}
	for _, text := range strings.FieldsFunc(values["node-ip"], func(r rune) bool { return r == ',' }) {
		ip, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			return c, 0, fmt.Errorf("--node-ip: %w", err)
		}
		c.NodeIPs = append(c.NodeIPs, ip.Unmap())
	}
	var err error
	if c.ExternalIPs, err = prefixes("external-ips", values); err != nil {
		return c, 0, err
	}
	if c.ServiceCIDRs, err = prefixes("service-cidr", values); err != nil {
		return c, 0, err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(values["log-level"])); err != nil {
		return c, 0, fmt.Errorf("--log-level %q: use debug, info, warn or error", values["log-level"])
	}
	return c, level, c.Validate()
}

// prefixes reads an option that is a list of prefixes.
func prefixes(name string, values map[string]string) (out []netip.Prefix, err error) {
	for _, text := range strings.FieldsFunc(values[name], func(r rune) bool { return r == ',' }) {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", name, err)
		}
		out = append(out, prefix.Masked())
	}
	return out, nil
}

// Command is `twill agent`.
func Command(s *cli.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run a node's agent",
		Long: `Run the agent of this node: it makes the node's network what the store asks
for, and attaches pods for the CNI executable twill-cni.

The agent may be stopped and killed at any time: packets go on. When it starts
it reads the kernel and writes only the difference.`,
		Example: `  twill agent --etcd-endpoints https://etcd-1:2379,https://etcd-2:2379
  twill agent --node-name node01 --node-ip 172.16.10.11`,
		Args: cobra.NoArgs,
	}
	options := newOptions(cmd.Flags())
	s.AddSettings(options.settings)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		config, level, err := options.config()
		if err != nil {
			return cli.Usage(err)
		}
		log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
		st, err := s.OpenClusterStore(cmd.Context(), log)
		if err != nil {
			return err
		}
		defer st.Close()
		a, err := New(config, st, log)
		if err != nil {
			return err
		}
		return a.Run(cmd.Context())
	}
	return cmd
}
