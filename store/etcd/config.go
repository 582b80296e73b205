package etcd

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// clientConfig checks the configuration and reads its files.
func clientConfig(c Config) (clientv3.Config, error) {
	transport, err := tlsConfig(c)
	if err != nil {
		return clientv3.Config{}, err
	}
	endpoints, secure, err := checkEndpoints(c.Endpoints, transport != nil)
	if err != nil {
		return clientv3.Config{}, err
	}
	if secure && transport == nil {
		transport = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	password, err := readPassword(c)
	if err != nil {
		return clientv3.Config{}, err
	}
	return clientv3.Config{
		Endpoints:   endpoints,
		TLS:         transport,
		Username:    c.Username,
		Password:    password,
		DialTimeout: callTimeout, // bounds the request for a token
		// etcd refuses pings more often than each 5 s. These notice a host that
		// vanished without a word, where no call would.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{
				// The library's own back-off grows to 2 minutes, in which a
				// node would not see that etcd is back. All who wait for it go
				// on when the connection stands (AwaitReconnect).
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxReconnectDelay},
				MinConnectTimeout: 3 * time.Second,
			}),
			grpc.WithChainUnaryInterceptor(keepLastError),
		},
	}, nil
}

// checkEndpoints refuses a mixture of plain and TLS endpoints: the client
// library would treat all as it treats the first, and talk plainly to a server
// for which a certificate was given.
func checkEndpoints(endpoints []string, haveTLS bool) (checked []string, secure bool, err error) {
	if len(endpoints) == 0 {
		return nil, false, errors.New("no endpoint is given; give at least one, such as http://127.0.0.1:2379")
	}
	for i, endpoint := range endpoints {
		scheme, rest, ok := strings.Cut(endpoint, "://")
		if !ok {
			scheme, rest = "http", endpoint
			if haveTLS {
				scheme = "https"
			}
		}
		if scheme == "unix" && haveTLS {
			scheme = "unixs"
		}
		endpoint = scheme + "://" + rest
		u, err := url.Parse(endpoint)
		tlsHere := scheme == "https" || scheme == "unixs"
		switch {
		case err != nil:
			return nil, false, fmt.Errorf("endpoint: %w", err)
		case scheme != "http" && scheme != "unix" && !tlsHere:
			return nil, false, fmt.Errorf("endpoint %s: scheme %q is not one of http, https, unix, unixs", endpoint, scheme)
		case (scheme == "http" || scheme == "https") && (u.Hostname() == "" || u.Port() == ""):
			return nil, false, fmt.Errorf("endpoint %s: host and port are needed, such as %s://192.0.2.1:2379", endpoint, scheme)
		case (scheme == "unix" || scheme == "unixs") && rest == "":
			return nil, false, fmt.Errorf("endpoint %s: a path is needed", endpoint)
		case haveTLS && !tlsHere:
			return nil, false, fmt.Errorf("endpoint %s is plain text though TLS files are given; write https://", endpoint)
		case i > 0 && tlsHere != secure:
			return nil, false, fmt.Errorf("endpoint %s: some endpoints are plain text and others TLS; make them alike", endpoint)
		}
		secure = tlsHere
		checked = append(checked, endpoint)
	}
	return checked, secure, nil
}

// tlsConfig returns nil if no TLS file is given.
func tlsConfig(c Config) (*tls.Config, error) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("a certificate and its key go together; one of the two files is missing")
	}
	if c.CAFile == "" && c.CertFile == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authority %s: no PEM certificate in it", c.CAFile)
		}
	}
	if c.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &pair, err
		}
		if _, err := load(); err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return t, nil
}

func readPassword(c Config) (string, error) {
	if (c.Username == "") != (c.PasswordFile == "") {
		return "", errors.New("a user name and a password file go together; one of the two is missing")
	}
	if c.Username == "" {
		return "", nil
	}
	text, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("password: %w", err)
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
		return "", fmt.Errorf("password: %s is empty", c.PasswordFile)
	}
	return string(line), nil
}
