package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/twill-net/twill/store"
)

// TestServiceRanges: several ServiceCIDRs may name one range; a cluster without such
// objects says nothing, which is an error and no empty list.
func TestServiceRanges(t *testing.T) {
	t.Parallel()
	list := `{"kind":"ServiceCIDRList","apiVersion":"networking.k8s.io/v1","metadata":{},"items":[
		{"metadata":{"name":"kubernetes","creationTimestamp":"2026-01-02T03:04:05Z"},"spec":{"cidrs":["10.96.0.0/12","fd00:10:96::/112"]}},
		{"metadata":{"name":"more"},"spec":{"cidrs":["10.96.0.0/12","10.112.0.0/16"]}}]}`
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := list
		if answer == "" || r.URL.Path != "/apis/networking.k8s.io/v1/servicecidrs" {
			w.WriteHeader(http.StatusNotFound)
			answer = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"the server could not find the requested resource"}`
		}
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(server.Close)
	s, err := Open(t.Context(), Config{Kubeconfig: kubeconfigOf(t, server, server.URL)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ranges, err := s.(store.Orchestrated).ServiceRanges(t.Context())
	if got := fmt.Sprint(ranges); err != nil || got != "[10.96.0.0/12 10.112.0.0/16 fd00:10:96::/112]" {
		t.Errorf("%s, %v", got, err)
	}
	list = ""
	if ranges, err := s.(store.Orchestrated).ServiceRanges(t.Context()); err == nil {
		t.Errorf("without the objects: %v", ranges)
	}
}
