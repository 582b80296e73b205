// Package etcd is the embedded etcd server of labs and tests: a single member,
// ready in a fraction of a second, that trusts its disk cache.
//
// It is never imported by the product: a cluster brings its own etcd, and a
// power failure may cost this one its data.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
)

// closeTimeout bounds Close: etcd waits for clients that won't go.
const closeTimeout = 5 * time.Second

// Config says where the server keeps its data and where it listens.
type Config struct {
	// Dir is created when it is missing. Data in it is taken up again.
	Dir string
	// ListenURLs are http://host:port and unix:///path. Host is an address.
	ListenURLs []string
	// AdvertiseURLs is what the member list tells clients; default ListenURLs.
	AdvertiseURLs []string
	// LogFile gets warnings and errors; empty drops them.
	LogFile string
}

// Server is a running etcd.
type Server struct {
	etcd    *embed.Etcd
	mu      sync.Mutex
	grpc    []*grpc.Server
	sockets []string
	log     *os.File
}

// Start returns when the server answers, or why it can't.
func Start(ctx context.Context, c Config) (*Server, error) {
	listen, err := parseURLs(c.ListenURLs)
	if err != nil {
		return nil, err
	}
	advertise := listen
	if len(c.AdvertiseURLs) > 0 {
		if advertise, err = parseURLs(c.AdvertiseURLs); err != nil {
			return nil, err
		}
	}
	if len(listen) == 0 || c.Dir == "" {
		return nil, errors.New("start etcd: a directory and an address to listen on are needed")
	}
	// etcd makes the directory of its data; 0700 is what it insists on.
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	s := &Server{}
	for _, u := range listen {
		if u.Scheme == "unix" {
			s.sockets = append(s.sockets, u.Host+u.Path)
		}
	}
	logger, err := s.openLog(c.LogFile)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	s.removeSockets() // a crash leaves them, and they can't be listened on again
	config := member(c.Dir, listen, advertise, logger)
	config.ServiceRegister = func(g *grpc.Server) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.grpc = append(s.grpc, g)
	}
	if s.etcd, err = embed.StartEtcd(config); err != nil {
		s.Close()
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
		return s, nil
	case err := <-s.etcd.Err():
		s.Close()
		return nil, fmt.Errorf("start etcd: %w", err)
	case <-ctx.Done():
		s.Close()
		return nil, fmt.Errorf("start etcd: %w", ctx.Err())
	}
}

// member configures a cluster of one.
func member(dir string, listen, advertise []url.URL, logger *zap.Logger) *embed.Config {
	c := embed.NewConfig()
	c.Name = "lab"
	c.Dir = filepath.Join(dir, "data")
	c.ListenClientUrls = listen
	c.AdvertiseClientUrls = advertise
	// Nobody ever connects to the only member; its peer URL is but a name.
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.Name + "=" + c.AdvertisePeerUrls[0].String()
	c.TickMs = 10
	c.ElectionMs = 100
	c.UnsafeNoFsync = true
	c.BackendBatchInterval = 10 * time.Millisecond
	c.AutoCompactionMode = embed.CompactorModeRevision
	c.AutoCompactionRetention = "10000"
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	return c
}

func parseURLs(texts []string) ([]url.URL, error) {
	var urls []url.URL
	for _, text := range texts {
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("start etcd: %w", err)
		}
		if !(u.Scheme == "http" && u.Host != "") && !(u.Scheme == "unix" && u.Host+u.Path != "") {
			return nil, fmt.Errorf("start etcd: %q is neither http://address:port nor unix:///path", text)
		}
		urls = append(urls, *u)
	}
	return urls, nil
}

func (s *Server) openLog(path string) (*zap.Logger, error) {
	if path == "" {
		return zap.NewNop(), nil
	}
	var err error
	if s.log, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339TimeEncoder
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(encoder), s.log, zap.WarnLevel)), nil
}

// Err delivers an error when the server fails after its start.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the server and removes its sockets; the data stays.
func (s *Server) Close() error {
	var err error
	if s.etcd != nil {
		// etcd itself would wait 5 s for open watches to end.
		s.mu.Lock()
		for _, g := range s.grpc {
			g.Stop()
		}
		s.mu.Unlock()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.etcd.Close()
		}()
		select {
		case <-done:
		case <-time.After(closeTimeout):
			err = fmt.Errorf("etcd did not stop within %s", closeTimeout)
		}
	}
	s.removeSockets()
	if s.log != nil {
		s.log.Close()
	}
	return err
}

func (s *Server) removeSockets() {
	for _, path := range s.sockets {
		os.Remove(path)
	}
}
