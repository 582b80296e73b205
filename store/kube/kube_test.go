package kube

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/storetest"
	"github.com/twill-net/twill/test/testkube"
)

func TestConformance(t *testing.T) {
	testkube.Program(t, "kube-apiserver") // one skip, not one for each part
	storetest.Run(t, func(t *testing.T) storetest.Server { return newServer(t) })
}

// server is a storetest.Server.
type server struct{ *testkube.Server }

func newServer(t *testing.T) *server {
	s := &server{testkube.Start(t)}
	s.namespaces(t)
	return s
}

// namespaces makes those that the API server insists on and has not itself.
func (s *server) namespaces(t *testing.T) {
	t.Helper()
	opened := s.Open(t)
	for _, name := range []string{"default", "a", "ab", "b", "c"} {
		ns := api.NamespaceKind.New()
		ns.SetName(name)
		if _, err := opened.Create(t.Context(), ns); err != nil && !errors.Is(err, store.ErrExists) {
			t.Fatal(err)
		}
	}
}

func (s *server) Open(t *testing.T) store.Store {
	t.Helper()
	opened, err := Open(t.Context(), Config{Kubeconfig: s.Kubeconfig()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return opened
}

func (s *server) Stop(t *testing.T)    { s.Server.Stop(t) }
func (s *server) Start(t *testing.T)   { s.Server.Start(t) }
func (s *server) Compact(t *testing.T) { s.Server.Compact(t) }
func (s *server) Backup(t *testing.T)  { s.Server.Backup(t) }
func (s *server) PutBack(t *testing.T) { s.Server.PutBack(t) }

func (s *server) Wipe(t *testing.T) {
	s.Server.Wipe(t)
	s.namespaces(t)
}

// ForgetsHistory implements storetest.Forgetful: the API server answers watches
// from what it has seen itself.
func (s *server) ForgetsHistory() {}

// Corrupt stores a custom resource as no schema of ours allows it. What the API
// server could not decode at all would make all lists of the kind fail.
func (s *server) Corrupt(t *testing.T, kind *api.Kind, key api.Key) {
	t.Helper()
	value, err := json.Marshal(map[string]any{
		"apiVersion": kind.APIVersion(), "kind": kind.Name, "spec": 7,
		"metadata": map[string]any{"name": key.Name, "namespace": key.Namespace, "uid": "0b0de8cc-7a80-4b28-9a4e-07e43e8ef2bd", "generation": 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Write(t, "/registry/"+kind.Group+"/"+kind.Plural+"/"+key.String(), string(value))
}
