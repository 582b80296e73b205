// Package registry serves the images of OCI archives to those who pull: the part
// of the distribution specification that reads. It is every registry at once: it
// goes by the whole name of an image, of which containerd tells a mirror the host
// as ns (hosts.toml).
package registry

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"time"
)

// Registry has images. It is an http.Handler.
type Registry struct {
	names map[string]string            // full names with tags → digests of manifests
	blobs map[string]*io.SectionReader // by digest, manifests too
	files []*os.File
}

// Open takes the images that are in archives. What an archive is changed to
// later is not seen.
func Open(archives ...string) (*Registry, error) {
	r := &Registry{names: map[string]string{}, blobs: map[string]*io.SectionReader{}}
	for _, name := range archives {
		file, err := os.Open(name)
		if err == nil {
			r.files = append(r.files, file)
			err = r.add(file)
		}
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("read the images of %s: %w", name, err)
		}
	}
	return r, nil
}

// Close closes the archives.
func (r *Registry) Close() {
	for _, file := range r.files {
		file.Close()
	}
}

// add remembers where in an archive its blobs are: they stay on disk.
func (r *Registry) add(archive *os.File) error {
	known := false
	for t := tar.NewReader(archive); ; {
		header, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if header.Name == "index.json" {
			if err := r.addNames(t); err != nil {
				return err
			}
			known = true
		}
		if digest, ok := strings.CutPrefix(header.Name, "blobs/sha256/"); ok && header.Typeflag == tar.TypeReg {
			begin, err := archive.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			r.blobs["sha256:"+digest] = io.NewSectionReader(archive, begin, header.Size)
		}
	}
	if !known {
		return errors.New("there is no index.json: it is no OCI archive")
	}
	return nil
}

func (r *Registry) addNames(in io.Reader) error {
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	if err := json.NewDecoder(in).Decode(&index); err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	for _, m := range index.Manifests {
		if name := m.Annotations["io.containerd.image.name"]; name != "" {
			r.names[name] = m.Digest
		}
	}
	return nil
}

// ServeHTTP answers requests for manifests and blobs.
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	rest, ok := strings.CutPrefix(q.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, q)
		return
	}
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
		return
	}
	if rest == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	// /v2/NAME/manifests/TAG-OR-DIGEST or /v2/NAME/blobs/DIGEST
	parent, reference := path.Split(rest)
	image, kind := path.Split(strings.TrimSuffix(parent, "/"))
	image = strings.TrimSuffix(image, "/")
	if host := q.URL.Query().Get("ns"); host != "" {
		image = host + "/" + image
	}
	switch kind {
	case "manifests":
		r.serveManifest(w, q, image, reference)
	case "blobs":
		r.serveBlob(w, q, reference, "application/octet-stream", "BLOB_UNKNOWN")
	default:
		http.NotFound(w, q)
	}
}

func (r *Registry) serveManifest(w http.ResponseWriter, q *http.Request, image, reference string) {
	digest := reference
	if !strings.Contains(reference, ":") {
		digest = r.names[image+":"+reference]
	}
	var manifest struct{ MediaType string }
	if blob := r.blobs[digest]; blob != nil {
		if err := json.NewDecoder(io.NewSectionReader(blob, 0, blob.Size())).Decode(&manifest); err != nil {
			refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", digest+" is no manifest")
			return
		}
	}
	r.serveBlob(w, q, digest, manifest.MediaType, "MANIFEST_UNKNOWN")
}

func (r *Registry) serveBlob(w http.ResponseWriter, q *http.Request, digest, mediaType, unknown string) {
	blob := r.blobs[digest]
	if blob == nil {
		refuse(w, http.StatusNotFound, unknown, q.URL.Path+" is not here")
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	http.ServeContent(w, q, "", time.Time{}, io.NewSectionReader(blob, 0, blob.Size()))
}

// refuse answers with an error as the specification has it.
func refuse(w http.ResponseWriter, code int, name, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": name, "message": message}}})
}
