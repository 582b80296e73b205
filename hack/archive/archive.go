// Package archive writes container images as OCI archives: an image layout in one
// tar file, which containerd, podman and skopeo read, and a lab's registry.
package archive

import (
	"archive/tar"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// Write writes an image, as its index of architectures, under full names with
// tags; whole or not at all. The same image gives the same bytes.
func Write(out string, index v1.ImageIndex, names ...string) error {
	work, err := os.MkdirTemp(filepath.Dir(out), ".archive-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	dir := filepath.Join(work, "layout")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, name := range names {
		// The first is what skopeo and podman look for, the second what containerd does.
		if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{
			"org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:],
			"io.containerd.image.name":          name,
		})); err != nil {
			return err
		}
	}
	packed := filepath.Join(work, "archive.tar")
	if err := pack(packed, dir); err != nil {
		return err
	}
	return os.Rename(packed, out)
}

// pack writes the files below a directory as a tar file.
func pack(out, dir string) error {
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	defer file.Close()
	w := tar.NewWriter(file)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return AddFile(w, filepath.ToSlash(name), path, 0o644)
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return err
	}
	return file.Close()
}

// AddFile adds a file to a tar file. Its time is none: it would differ each time.
func AddFile(w *tar.Writer, name, path string, mode int64) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: info.Size(), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err = io.Copy(w, file)
	return err
}
