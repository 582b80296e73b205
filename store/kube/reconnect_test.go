package kube

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// answer is what becomes of a request: a status, or 0 if no server is there.
type answer struct{ status int }

func (a *answer) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.status == 0 {
		return nil, errors.New("connection refused")
	}
	body := `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"details":{"name":"x","kind":"pods"}}`
	if a.status == http.StatusServiceUnavailable {
		body = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"ServiceUnavailable","code":503}`
	}
	return &http.Response{StatusCode: a.status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// TestWaitsAreCutShort: of all that wait for an API server that is away the first
// who gets through ends the waits of the others, and nothing else does.
func TestWaitsAreCutShort(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"clusters":[{"name":"c","cluster":{"server":"http://192.0.2.1"}}],
		"contexts":[{"name":"c","context":{"cluster":"c"}}],"current-context":"c"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		opened, err := Open(t.Context(), Config{Kubeconfig: kubeconfig})
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close()
		s, server := opened.(*Store), &answer{}
		s.http.Transport = server
		ctx, stop := context.WithCancel(t.Context())
		start, over := time.Now(), make(chan time.Duration, 1)
		wait := func() {
			go func() {
				store.Pause(ctx, s, time.Hour)
				over <- time.Since(start)
			}()
			synctest.Wait()
		}
		expect := func(what string, want bool) {
			t.Helper()
			synctest.Wait()
			select {
			case <-over:
				if !want {
					t.Errorf("%s: a wait is over", what)
				}
			default:
				if want {
					t.Errorf("%s: a wait goes on", what)
				}
			}
		}
		ask := func(ctx context.Context, status int) {
			server.status = status
			_, _ = s.Get(ctx, api.NamespaceKind, api.Key{Name: "x"})
		}
		gone, cancel := context.WithCancel(ctx)
		cancel()

		wait()
		ask(ctx, http.StatusNotFound)
		expect("it was there all the time", false)
		ask(ctx, http.StatusServiceUnavailable)
		ask(ctx, http.StatusNotFound)
		expect("it could not serve for a moment", false)
		ask(ctx, 0)
		expect("it is away", false)
		ask(gone, http.StatusNotFound)
		expect("a call that its caller gave up", false)
		ask(ctx, http.StatusServiceUnavailable)
		expect("it starts", false)
		ask(ctx, http.StatusNotFound)
		expect("it is back", true)

		wait()
		ask(ctx, http.StatusNotFound)
		expect("it is still there", false)
		stop()
		expect("the caller stops", true)
	})
}
