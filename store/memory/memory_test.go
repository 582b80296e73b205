package memory

import (
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Server { return &server{Store: New()} })
}

// server lends one store out as if to many clients.
type server struct {
	*Store
	backup Backup
}

func (s *server) Open(*testing.T) store.Store { return s.Store }
func (s *server) Stop(*testing.T)             { s.SetDown(true) }
func (s *server) Start(*testing.T)            { s.SetDown(false) }
func (s *server) Compact(*testing.T)          { s.Store.Compact() }
func (s *server) Wipe(*testing.T)             { s.Restore(Backup{}) }
func (s *server) Backup(*testing.T)           { s.backup = s.Store.Backup() }
func (s *server) PutBack(*testing.T)          { s.Restore(s.backup) }
func (s *server) Corrupt(_ *testing.T, kind *api.Kind, key api.Key) {
	s.Store.Corrupt(kind, key)
}

func TestBackupAndRestore(t *testing.T) {
	s := New()
	ctx := t.Context()
	pool := func(name string) api.Object {
		obj := api.IPPoolKind.New()
		obj.SetName(name)
		return obj
	}
	if _, err := s.Create(ctx, pool("kept")); err != nil {
		t.Fatal(err)
	}
	backup := s.Backup()
	for range 2 { // a backup can be used again
		if _, err := s.Create(ctx, pool("lost")); err != nil {
			t.Fatal(err)
		}
		s.Restore(backup)
		list, err := s.List(ctx, api.IPPoolKind, "")
		if err != nil || len(list.Items) != 1 || list.Items[0].GetName() != "kept" {
			t.Errorf("restored: %v, %v", list, err)
		}
	}
}

func TestHistoryIsBounded(t *testing.T) {
	s := New()
	ctx := t.Context()
	list, err := s.List(ctx, api.IPPoolKind, "")
	if err != nil {
		t.Fatal(err)
	}
	obj := api.IPPoolKind.New()
	obj.SetName("pool")
	for range historyLimit {
		if _, err := s.Create(ctx, obj); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, api.IPPoolKind, api.KeyOf(obj), ""); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.shelf(api.IPPoolKind).history); n > historyLimit*5/4 {
		t.Errorf("%d changes are remembered", n)
	}
	events, ended := s.Watch(ctx, api.IPPoolKind, list.Revision)
	for range events {
	}
	if err := ended(); err == nil {
		t.Error("a watch from the beginning did not end")
	}
}
