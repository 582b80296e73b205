package etcd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

func isUnavailable(err error) bool { return errors.Is(err, store.ErrUnavailable) }

// recorder collects log lines.
type recorder struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func newRecorder() *recorder { return &recorder{} }

func (r *recorder) logger() *slog.Logger { return slog.New(slog.NewTextHandler(r, nil)) }

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *recorder) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Split(strings.TrimSuffix(r.buf.String(), "\n"), "\n")
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certs := makeCertificates(t, dir)
	good := []string{"https://127.0.0.1:2379"}
	for name, c := range map[string]struct {
		Config
		want string
	}{
		"no endpoint":       {Config{}, "no endpoint"},
		"scheme":            {Config{Endpoints: []string{"etcd://127.0.0.1:2379"}}, "not one of"},
		"no port":           {Config{Endpoints: []string{"http://127.0.0.1"}}, "host and port"},
		"no host":           {Config{Endpoints: []string{":2379"}}, "host and port"},
		"no path":           {Config{Endpoints: []string{"unix://"}}, "path is needed"},
		"rubbish":           {Config{Endpoints: []string{"http://[::1:2379"}}, "endpoint"},
		"mixture":           {Config{Endpoints: []string{"https://127.0.0.1:2379", "http://127.0.0.1:2380"}}, "alike"},
		"plain with CA":     {Config{Endpoints: []string{"http://127.0.0.1:2379"}, CAFile: certs.ca}, "plain text"},
		"CA missing":        {Config{Endpoints: good, CAFile: filepath.Join(dir, "none")}, "no such file"},
		"CA rubbish":        {Config{Endpoints: good, CAFile: file("ca", "rubbish")}, "no PEM"},
		"key missing":       {Config{Endpoints: good, CertFile: certs.cert}, "go together"},
		"key of another":    {Config{Endpoints: good, CertFile: certs.cert, KeyFile: file("key", "rubbish")}, "client certificate"},
		"password missing":  {Config{Endpoints: good, Username: "twill"}, "go together"},
		"password empty":    {Config{Endpoints: good, Username: "twill", PasswordFile: file("empty", "\n")}, "empty"},
		"user name missing": {Config{Endpoints: good, PasswordFile: file("p", "x")}, "go together"},
	} {
		s, err := Open(t.Context(), c.Config)
		if err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

// certificates are paths of PEM files: an authority, and a certificate of
// 127.0.0.1 for both sides of a connection.
type certificates struct{ ca, cert, key string }

func makeCertificates(t *testing.T, dir string) certificates {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Hour),
		Subject:               pkix.Name{CommonName: "test"},
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return certificates{write("ca.pem", "CERTIFICATE", cert), write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", private)}
}

// startTLS is an etcd that speaks TLS, and wants client certificates if so told.
func startTLS(t *testing.T, certs certificates, clientCerts bool) (address string) {
	address = freeAddress(t, "127.0.0.1")
	c := embed.NewConfig()
	c.Dir = filepath.Join(t.TempDir(), "data")
	c.ListenPeerUrls = nil
	c.ListenClientUrls = []url.URL{{Scheme: "https", Host: address}}
	c.AdvertiseClientUrls = c.ListenClientUrls
	c.ClientTLSInfo = transport.TLSInfo{CertFile: certs.cert, KeyFile: certs.key}
	if clientCerts {
		c.ClientTLSInfo.TrustedCAFile = certs.ca
		c.ClientTLSInfo.ClientCertAuth = true
	}
	c.TickMs, c.ElectionMs, c.UnsafeNoFsync = 10, 100, true
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	server, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	<-server.Server.ReadyNotify()
	return address
}

func TestTLS(t *testing.T) {
	certs := makeCertificates(t, t.TempDir())
	list := func(c Config) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := open(t, c).List(ctx, api.NodeKind, "")
		return err
	}
	address := startTLS(t, certs, false)
	for _, endpoint := range []string{address, "https://" + address} {
		if err := list(Config{Endpoints: []string{endpoint}, CAFile: certs.ca}); err != nil {
			t.Errorf("%s with a CA only: %v", endpoint, err)
		}
	}
	if err := list(Config{Endpoints: []string{"https://" + address}}); !isUnavailable(err) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown authority: %v", err)
	}
	address = startTLS(t, certs, true)
	if err := list(Config{Endpoints: []string{address}, CAFile: certs.ca, CertFile: certs.cert, KeyFile: certs.key}); err != nil {
		t.Error("client certificate: ", err)
	}
	if err := list(Config{Endpoints: []string{address}, CAFile: certs.ca}); !isUnavailable(err) {
		t.Errorf("no client certificate: %v", err)
	}
}

func TestPassword(t *testing.T) {
	s := newServer(t, startEmbedded, socket(t))
	s.raw(t, func(ctx context.Context, c *clientv3.Client) error {
		_, errUser := c.UserAdd(ctx, "root", "secret")
		_, errGrant := c.UserGrantRole(ctx, "root", "root")
		_, errEnable := c.AuthEnable(ctx)
		return errors.Join(errUser, errGrant, errEnable)
	})
	password := func(text string) string {
		path := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := open(t, Config{Endpoints: []string{s.endpoint}, Username: "root", PasswordFile: password("secret\n")})
	list, err := good.List(t.Context(), api.NodeKind, "")
	if err != nil {
		t.Fatal(err)
	}
	events, _ := good.Watch(t.Context(), api.NodeKind, list.Revision)
	node := api.NodeKind.New()
	node.SetName("node01")
	if _, err := good.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	<-events
	if event := <-events; event.Type != store.Put {
		t.Errorf("event %+v", event)
	}
	for name, c := range map[string]Config{
		"wrong": {Username: "root", PasswordFile: password("guess")},
		"none":  {},
	} {
		c.Endpoints = []string{s.endpoint}
		if _, err := open(t, c).List(t.Context(), api.NodeKind, ""); err == nil || isUnavailable(err) {
			t.Errorf("%s password: %v", name, err)
		} else {
			t.Log(err)
		}
	}
}
