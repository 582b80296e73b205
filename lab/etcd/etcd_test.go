package etcd

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func TestStartKeepsData(t *testing.T) {
	dir := t.TempDir()
	c := Config{
		Dir:        dir,
		ListenURLs: []string{"unix://" + filepath.Join(dir, "s"), "http://127.0.0.1:0"},
		LogFile:    filepath.Join(dir, "log"),
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i := range 3 {
		start := time.Now()
		s, err := Start(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("start %d took %s", i, time.Since(start))
		client, err := clientv3.New(clientv3.Config{Endpoints: c.ListenURLs[:1], Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		r, err := client.Get(ctx, "k")
		if err != nil || int(r.Count) != min(i, 1) {
			t.Errorf("start %d: %v keys, error %v", i, r, err)
		}
		if _, err := client.Put(ctx, "k", "v"); err != nil {
			t.Error(err)
		}
		client.Close()
		start = time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		t.Logf("stop %d took %s", i, time.Since(start))
	}
}

func TestStartRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"nothing": {},
		"scheme":  {Dir: t.TempDir(), ListenURLs: []string{"ftp://127.0.0.1:1"}},
		"no host": {Dir: t.TempDir(), ListenURLs: []string{"http://"}},
		"foreign": {Dir: t.TempDir(), ListenURLs: []string{"http://192.0.2.1:9"}},
	} {
		if s, err := Start(t.Context(), c); err == nil {
			s.Close()
			t.Errorf("%s: started", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}
