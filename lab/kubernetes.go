package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// kubernetesPatience bounds the wait for each of Kubernetes' programs.
const kubernetesPatience = 2 * time.Minute

// kubernetes is the control plane of a lab with a real Kubernetes. Its files are
// in the lab's directory, which the nodes see.
type kubernetes struct {
	cfg      *Config
	dir      string // of keys, tokens and kubeconfigs
	programs []*process
}

// AuditLog is where the API server of a lab writes down the requests of Twill's
// service accounts, one a line.
func AuditLog(lab string) string { return filepath.Join(dir(lab), "kubernetes", "audit.log") }

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts:kube-system"]}
- {level: None}
`

const adminToken = "lab-admin"

func nodeToken(node string) string { return "lab-node-" + node }

func newKubernetes(cfg *Config, master *node) (*kubernetes, error) {
	k := &kubernetes{cfg: cfg, dir: filepath.Join(dir(cfg.Name), "kubernetes")}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return nil, err
	}
	if err := k.writeSecrets(); err != nil {
		return nil, err
	}
	own := k.file("kubeconfig")
	address := cfg.NodeAddresses(0)[0].String()
	argv := map[string][]string{
		"kube-apiserver": {
			"--etcd-servers=" + cfg.etcdURL(), "--bind-address=" + address, "--advertise-address=" + address,
			"--cert-dir=" + k.file("certs"), "--service-cluster-ip-range=" + join(cfg.serviceNets()),
			"--service-account-issuer=https://kubernetes.default.svc." + clusterName,
			"--service-account-key-file=" + k.file("service-account.pub"),
			"--service-account-signing-key-file=" + k.file("service-account.key"),
			"--token-auth-file=" + k.file("tokens"), "--authorization-mode=Node,RBAC", "--allow-privileged=true",
			"--enable-admission-plugins=NodeRestriction", "--profiling=false",
			"--kubelet-preferred-address-types=InternalIP",
			"--audit-policy-file=" + k.file("audit.yaml"), "--audit-log-path=" + AuditLog(cfg.Name),
		},
		"kube-controller-manager": {
			"--kubeconfig=" + own, "--authentication-kubeconfig=" + own, "--authorization-kubeconfig=" + own,
			"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials",
			"--service-account-private-key-file=" + k.file("service-account.key"), "--root-ca-file=" + k.file("certs/apiserver.crt"),
			"--allocate-node-cidrs", "--cluster-cidr=" + join(cfg.Pools), "--service-cluster-ip-range=" + join(cfg.serviceNets()),
			"--profiling=false",
		},
		"kube-scheduler": {
			"--kubeconfig=" + own, "--authentication-kubeconfig=" + own, "--authorization-kubeconfig=" + own,
			"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false",
		},
	}
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		k.programs = append(k.programs, &process{
			name: name, space: master.space, log: LogPath(cfg.Name, name), env: hostEnvironment(),
			argv: append([]string{filepath.Join(cfg.Kubernetes, name)}, argv[name]...),
		})
	}
	return k, nil
}

// completeKubernetes says what is missing of what a cluster needs.
func (c *Config) completeKubernetes() (err error) {
	if c.Kubernetes == "" && c.KubeProxy {
		return errors.New("only a lab with Kubernetes has a kube-proxy: give --kubernetes DIR too")
	}
	if c.Kubernetes == "" {
		return nil
	}
	if c.Kubernetes, err = filepath.Abs(c.Kubernetes); err != nil {
		return err
	}
	type needed struct{ path, remedy string }
	var all []needed
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "images/pause.tar", "images/coredns.tar"} {
		all = append(all, needed{filepath.Join(c.Kubernetes, filepath.FromSlash(name)), "run \"make kubernetes\", which says where it puts it"})
	}
	if c.KubeProxy {
		all = append(all, needed{filepath.Join(c.Kubernetes, "kube-proxy"), "run \"make kubernetes PROGRAMS=kube-proxy\""})
	}
	all = append(all,
		needed{filepath.Join(c.Executables, "twill-image.tar"), "run \"make image VERSION=dev\""},
		needed{containerd, "install containerd"},
		needed{runc, "install runc"},
		needed{loopbackPlugin, "install containernetworking-plugins"})
	for _, n := range all {
		if _, err := os.Stat(n.path); err != nil {
			return fmt.Errorf("there is no %s, which a lab with Kubernetes needs: %s", n.path, n.remedy)
		}
	}
	if c.DualStack {
		return errors.New("a lab with Kubernetes has IPv4 only: leave out --dual-stack")
	}
	return nil
}

// Kubectl is the command that runs kubectl on the master, as an administrator.
func (c *Config) Kubectl(args []string) ([]string, error) {
	if c.Kubernetes == "" {
		return nil, fmt.Errorf("lab %q has no Kubernetes: make one with \"twill lab up --kubernetes DIR\"", c.Name)
	}
	kubeconfig := filepath.Join(dir(c.Name), "kubernetes", "kubeconfig")
	return append([]string{filepath.Join(c.Kubernetes, "kubectl"), "--kubeconfig", kubeconfig}, args...), nil
}

func (k *kubernetes) file(name string) string { return filepath.Join(k.dir, name) }

func (k *kubernetes) url() string {
	return "https://" + net.JoinHostPort(k.cfg.NodeAddresses(0)[0].String(), "6443")
}

// writeSecrets writes who may come in, and the key by which pods' tokens are
// signed.
func (k *kubernetes) writeSecrets() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	admin, err := k.kubeconfig(adminToken)
	if err != nil {
		return err
	}
	var tokens strings.Builder
	fmt.Fprintf(&tokens, "%s,admin,admin,system:masters\n", adminToken)
	for _, name := range k.cfg.NodeNames() {
		fmt.Fprintf(&tokens, "%s,system:node:%s,%s,system:nodes\n", nodeToken(name), name, name)
	}
	for name, content := range map[string][]byte{
		"service-account.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}),
		"service-account.pub": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
		"tokens":              []byte(tokens.String()),
		"audit.yaml":          []byte(auditPolicy),
		"kubeconfig":          admin,
	} {
		if err := os.WriteFile(k.file(name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// kubeconfig is that of whoever has the token.
func (k *kubernetes) kubeconfig(token string) ([]byte, error) {
	return yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "lab",
		"clusters": []any{map[string]any{"name": "lab", "cluster": map[string]any{
			"server": k.url(), "certificate-authority": k.file("certs/apiserver.crt")}}},
		"users":    []any{map[string]any{"name": "lab", "user": map[string]any{"token": token}}},
		"contexts": []any{map[string]any{"name": "lab", "context": map[string]any{"cluster": "lab", "user": "lab"}}},
	})
}

// start starts the control plane and returns when the API server answers.
func (k *kubernetes) start(ctx context.Context, master *node) error {
	server := k.programs[0]
	if err := server.start(); err != nil {
		return err
	}
	if err := server.await(func() bool { return k.answers(ctx, master) }, kubernetesPatience); err != nil {
		return err
	}
	for _, p := range k.programs[1:] {
		if err := p.start(); err != nil {
			return err
		}
	}
	return nil
}

// program is one of the control plane; nil: it has none of this name.
func (k *kubernetes) program(name string) *process {
	for _, p := range k.programs {
		if p.name == name {
			return p
		}
	}
	return nil
}

func (k *kubernetes) answers(ctx context.Context, from *node) bool {
	return k.get(ctx, from, "/readyz") == http.StatusOK
}

// get asks the API server from within a node, and returns the answer's code; 0
// if there is none.
func (k *kubernetes) get(ctx context.Context, from *node, path string) int {
	pool := x509.NewCertPool()
	if certificate, err := os.ReadFile(k.file("certs/apiserver.crt")); err == nil {
		pool.AppendCertsFromPEM(certificate)
	}
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (c net.Conn, err error) {
			err = from.space.Do(func() error { c, err = net.DialTimeout(network, address, time.Second); return err })
			return c, err
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url()+path, nil)
	if err != nil {
		return 0
	}
	request.Header.Set("Authorization", "Bearer "+adminToken)
	answer, err := client.Do(request)
	if err != nil {
		return 0
	}
	answer.Body.Close()
	return answer.StatusCode
}
