// Package testkube gives tests a real API server: the kube-apiserver that
// `make kubernetes` built, over an embedded etcd, both on a loopback address of
// the test's own.
//
// It starts no kubelet, no scheduler and no controllers: what such would write a
// test writes itself.
package testkube

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/deploy"
	"github.com/twill-net/twill/lab/etcd"
)

// patience bounds the start of the API server, which takes a few seconds on a
// machine that has nothing else to do.
const patience = 3 * time.Minute

// token is that of a member of system:masters.
const token = "of-the-test"

// Server is an API server with Twill's custom resources. Its methods may not be
// called concurrently.
type Server struct {
	program string
	dir     string
	host    string
	url     string
	etcdURL string

	etcd   *etcd.Server
	server *exec.Cmd
	exited chan struct{}
}

// Start brings an API server up that ends with the test. The test is skipped if
// kube-apiserver was not built.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{program: Program(t, "kube-apiserver"), dir: t.TempDir()}
	// An address of the test's own: on 127.0.0.1 the port of a server that is
	// stopped for a while may become a client's.
	s.host = fmt.Sprintf("127.%d.%d.%d", 1+rand.N(250), rand.N(250), 1+rand.N(250))
	s.url, s.etcdURL = "https://"+s.host+":6443", "http://"+s.host+":2379"
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			s.tellLog(t)
		}
		s.Stop(t)
	})
	s.Start(t)
	return s
}

// Program is the path of one of Kubernetes' programs, or of images/NAME.tar. The
// test is skipped if it was not built.
func Program(t testing.TB, name string) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	requirements, err := os.ReadFile(filepath.Join(filepath.Dir(here), "../kubernetes/go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^\s*(?:require )?k8s\.io/kubernetes v(\S+)`).FindSubmatch(requirements)
	cache, err := os.UserCacheDir()
	if err != nil || version == nil {
		t.Fatalf("which Kubernetes, and where it is: %v", err)
	}
	path := filepath.Join(cache, "twill", "kubernetes-"+string(version[1]), filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is not built: run make kubernetes", name)
	}
	return path
}

// prepare writes the files that the API server and its clients need.
func (s *Server) prepare() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	if der, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
		return err
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	kubeconfig, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []any{map[string]any{"name": "test", "cluster": map[string]any{
			"server": s.url, "certificate-authority": s.file("certs/apiserver.crt")}}},
		"users":    []any{map[string]any{"name": "test", "user": map[string]any{"token": token}}},
		"contexts": []any{map[string]any{"name": "test", "context": map[string]any{"cluster": "test", "user": "test"}}},
	})
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"service-account.key": private,
		"service-account.pub": public,
		"tokens":              []byte(token + ",test,test,system:masters\n"),
		"kubeconfig":          kubeconfig,
	} {
		if err := os.WriteFile(s.file(name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }

// Kubeconfig is the path of an administrator's kubeconfig.
func (s *Server) Kubeconfig() string { return s.file("kubeconfig") }

// Start brings the server back with its data, and returns when it answers for
// all kinds.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.startEtcd(t)
	s.startServer(t)
	definitions, err := deploy.CustomResources()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range definitions {
		s.define(t, text)
	}
}

func (s *Server) startEtcd(t testing.TB) {
	t.Helper()
	var err error
	s.etcd, err = etcd.Start(t.Context(), etcd.Config{Dir: s.file("etcd"), ListenURLs: []string{s.etcdURL}})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *Server) startServer(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(s.file("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.server = exec.Command(s.program,
		"--etcd-servers="+s.etcdURL,
		"--bind-address="+s.host, "--secure-port=6443", "--cert-dir="+s.file("certs"),
		"--endpoint-reconciler-type=none", // nobody comes here by a service
		"--service-cluster-ip-range=10.1.0.0/16",
		"--service-account-issuer="+s.url,
		"--service-account-key-file="+s.file("service-account.pub"),
		"--service-account-signing-key-file="+s.file("service-account.key"),
		"--token-auth-file="+s.file("tokens"),
		"--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount", // its accounts are made by a controller
		"--allow-privileged=true",
		"--profiling=false",
	)
	s.server.Stdout, s.server.Stderr = log, log
	s.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.server.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	s.exited = exited
	go func(c *exec.Cmd) { _ = c.Wait(); close(exited) }(s.server)
	s.await(t, "/readyz")
}

// await waits until a path is answered with 200.
func (s *Server) await(t testing.TB, path string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		code, body, err := s.Do(http.MethodGet, path, "", nil)
		if err == nil && code == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("kube-apiserver: no answer to %s within %s: %d %s %v", path, patience, code, body, err)
		}
		select {
		case <-tick.C:
		case <-s.exited:
			t.Fatalf("kube-apiserver ended: %s", s.server.ProcessState)
		}
	}
}

// define makes a custom resource known, unless it is, and waits until it is
// served.
func (s *Server) define(t testing.TB, text []byte) {
	t.Helper()
	var d struct {
		Spec struct {
			Group    string
			Names    struct{ Plural string }
			Versions []struct{ Name string }
		}
	}
	if err := yaml.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	code, body, err := s.Do(http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "application/yaml", text)
	if err != nil || code != http.StatusCreated && code != http.StatusConflict {
		t.Fatalf("define %s: %d %s %v", d.Spec.Names.Plural, code, body, err)
	}
	s.await(t, "/apis/"+d.Spec.Group+"/"+d.Spec.Versions[0].Name+"/"+d.Spec.Names.Plural)
}

// Do sends a request as an administrator and returns the answer.
func (s *Server) Do(method, path, contentType string, body []byte) (code int, answer []byte, err error) {
	pool := x509.NewCertPool()
	if certificate, err := os.ReadFile(s.file("certs/apiserver.crt")); err == nil {
		pool.AppendCertsFromPEM(certificate)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}
	client := http.Client{Transport: transport, Timeout: 30 * time.Second}
	request, err := http.NewRequest(method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}

// Stop ends the server and etcd at once.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if s.server != nil && s.server.Process != nil {
		_ = s.server.Process.Kill() // it may have ended by itself
		<-s.exited
		s.server = nil
	}
	if s.etcd != nil {
		if err := s.etcd.Close(); err != nil {
			t.Error(err)
		}
		s.etcd = nil
	}
}

// Wipe replaces the running server by an empty one at the same address.
func (s *Server) Wipe(t testing.TB) {
	t.Helper()
	s.Stop(t)
	if err := os.RemoveAll(s.file("etcd")); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
}

// Compact drops all history: etcd's, and what the API server remembers of it.
func (s *Server) Compact(t testing.TB) {
	t.Helper()
	s.compact(t)
	s.Stop(t)
	s.Start(t)
}

func (s *Server) compact(t testing.TB) {
	t.Helper()
	s.etcdDo(t, func(c *clientv3.Client) error {
		r, err := c.Get(t.Context(), "k")
		if err == nil {
			_, err = c.Compact(t.Context(), r.Header.Revision)
		}
		return err
	})
}

// Backup keeps what there is.
func (s *Server) Backup(t testing.TB) {
	t.Helper()
	s.Stop(t)
	if err := os.CopyFS(s.file("backup"), os.DirFS(s.file("etcd"))); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
}

// PutBack puts the server back to its backup in the way that etcd's operators
// have to: its revision is raised beyond what was ever seen, and all before that
// compacted. Nobody but they can tell the API server's clients.
func (s *Server) PutBack(t testing.TB) {
	t.Helper()
	seen := s.revision(t)
	s.Stop(t)
	if err := errors.Join(os.RemoveAll(s.file("etcd")), os.Rename(s.file("backup"), s.file("etcd"))); err != nil {
		t.Fatal(err)
	}
	s.startEtcd(t)
	for s.revision(t) <= seen {
		s.Write(t, "raised", "")
	}
	s.compact(t)
	s.startServer(t)
}

func (s *Server) revision(t testing.TB) (revision int64) {
	t.Helper()
	s.etcdDo(t, func(c *clientv3.Client) error {
		r, err := c.Get(t.Context(), "k")
		if err == nil {
			revision = r.Header.Revision
		}
		return err
	})
	return revision
}

// Write puts a value into etcd, beside the API server.
func (s *Server) Write(t testing.TB, path, value string) {
	t.Helper()
	s.etcdDo(t, func(c *clientv3.Client) error {
		_, err := c.Put(t.Context(), path, value)
		return err
	})
}

func (s *Server) etcdDo(t testing.TB, do func(*clientv3.Client) error) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.etcdURL}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := do(c); err != nil {
		t.Fatal(err)
	}
}

// tellLog shows the end of what the API server said.
func (s *Server) tellLog(t testing.TB) {
	text, err := os.ReadFile(s.file("log"))
	if err != nil {
		return
	}
	const end = 4000
	t.Logf("the API server's last words: %s", text[max(0, len(text)-end):])
}
