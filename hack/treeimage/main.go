// Command treeimage writes a container image whose one layer is a directory tree,
// as an OCI archive under all the names that it is given. A lab's registry has
// nothing but what it is given this way.
package main

import (
	"archive/tar"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/twill-net/twill/hack/archive"
)

func main() {
	tree := flag.String("tree", "", "the directory")
	out := flag.String("o", "", "the archive")
	entrypoint := flag.String("entrypoint", "", "what the image always runs, words separated by blanks")
	command := flag.String("command", "", "what the image runs, or its entry point's arguments")
	flag.Parse()
	if *tree == "" || *out == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: treeimage -tree DIR -o FILE [-entrypoint WORDS] [-command WORDS] NAME...")
		os.Exit(2)
	}
	if err := run(*tree, *out, strings.Fields(*entrypoint), strings.Fields(*command), flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(tree, out string, entrypoint, command, names []string) error {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return pack(tree), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return fmt.Errorf("pack %s: %w", tree, err)
	}
	image, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Entrypoint, config.Config.Cmd = entrypoint, command
	config.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return err
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: image, Descriptor: v1.Descriptor{Platform: config.Platform()},
	})
	return archive.Write(out, index, names...)
}

// pack is the tree as a tar stream.
func pack(tree string) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		t := tar.NewWriter(w)
		err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == tree {
				return err
			}
			return add(t, tree, path, d)
		})
		if err == nil {
			err = t.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

func add(t *tar.Writer, tree, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	if info.Mode()&(fs.ModeSocket|fs.ModeDevice|fs.ModeNamedPipe) != 0 {
		return nil // the runtime makes what a container needs of these
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(tree, path)
	if err != nil {
		return err
	}
	header.Name, header.Uname, header.Gname = filepath.ToSlash(rel), "", ""
	if d.IsDir() {
		header.Name += "/"
	}
	if err := t.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(t, file)
	return err
}
