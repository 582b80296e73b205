package registry_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/twill-net/twill/hack/archive"
	"github.com/twill-net/twill/lab/registry"
)

// serve writes an image under names, and serves it.
func serve(t *testing.T, names ...string) (url string, index v1.ImageIndex) {
	t.Helper()
	image, err := random.Image(1<<16, 2)
	if err != nil {
		t.Fatal(err)
	}
	index = mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: image})
	out := filepath.Join(t.TempDir(), "image.tar")
	if err := archive.Write(out, index, names...); err != nil {
		t.Fatal(err)
	}
	r, err := registry.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	return server.URL, index
}

func request(t *testing.T, method, url string) (*http.Response, []byte) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, body
}

// TestPull asks as containerd asks a mirror of all registries.
func TestPull(t *testing.T) {
	url, index := serve(t, "docker.io/library/busybox:latest", "registry.example:5000/tools/busybox:1.37")
	want, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for path, there := range map[string]bool{
		"library/busybox/manifests/latest?ns=docker.io":            true,
		"tools/busybox/manifests/1.37?ns=registry.example:5000":    true,
		"tools/busybox/manifests/1.38?ns=registry.example:5000":    false,
		"library/busybox/manifests/latest?ns=registry.example":     false,
		"library/busybox/manifests/latest":                         false,
		"library/busybox/blobs/" + strings.Repeat("0", 64):         false,
		"library/busybox/tags/list?ns=docker.io":                   false,
		"docker.io/library/busybox/manifests/" + want.String():     true,
		"docker.io/library/busybox/manifests/latest":               true,
		"library/busybox/manifests/" + want.String() + "?ns=other": true, // a digest says which
	} {
		answer, body := request(t, http.MethodHead, url+"/v2/"+path)
		if got := answer.StatusCode == http.StatusOK; got != there || len(body) > 0 {
			t.Errorf("HEAD %s: %s, want it to be there: %t", path, answer.Status, there)
		}
		if got := answer.Header.Get("Docker-Content-Digest"); there && got != want.String() {
			t.Errorf("HEAD %s: the digest is %s, want %s", path, got, want)
		}
	}
	pull(t, url+"/v2/library/busybox/", want, types.OCIImageIndex)
}

// pull gets a manifest and all that it names.
func pull(t *testing.T, url string, manifest v1.Hash, mediaType types.MediaType) {
	t.Helper()
	answer, body := request(t, http.MethodGet, url+"manifests/"+manifest.String())
	if got := answer.Header.Get("Content-Type"); got != string(mediaType) {
		t.Errorf("%s is of type %s, want %s", manifest, got, mediaType)
	}
	check(t, manifest, body)
	var names struct {
		Manifests, Layers []v1.Descriptor
		Config            v1.Descriptor
	}
	if err := json.Unmarshal(body, &names); err != nil {
		t.Fatal(err)
	}
	for _, m := range names.Manifests {
		pull(t, url, m.Digest, m.MediaType)
	}
	if len(names.Layers) == 0 {
		return
	}
	for _, blob := range append(names.Layers, names.Config) {
		_, body := request(t, http.MethodGet, url+"blobs/"+blob.Digest.String())
		check(t, blob.Digest, body)
	}
}

func check(t *testing.T, want v1.Hash, content []byte) {
	t.Helper()
	if got, _, err := v1.SHA256(bytes.NewReader(content)); got != want {
		t.Errorf("the digest of what came is %s %v, want %s", got, err, want)
	}
}

func TestReadOnly(t *testing.T) {
	url, _ := serve(t, "registry.example/a:1")
	for method, want := range map[string]int{http.MethodGet: http.StatusOK, http.MethodPost: http.StatusMethodNotAllowed} {
		if answer, _ := request(t, method, url+"/v2/"); answer.StatusCode != want {
			t.Errorf("%s /v2/: %s, want %d", method, answer.Status, want)
		}
	}
}

func TestWhatIsNoArchive(t *testing.T) {
	for what, content := range map[string]string{"empty": "", "text": "hello"} {
		path := filepath.Join(t.TempDir(), what)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := registry.Open(path); err == nil {
			t.Errorf("%s: taken for an archive", what)
		}
	}
	if _, err := registry.Open(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there was taken for an archive")
	}
}
