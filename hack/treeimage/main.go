// Command treeimage writes a container image whose one layer is a directory tree,
// for clusters of a lab, which can pull none. It is an archive of the form of
// docker save, under all the names that it is given.
package main

import (
	"archive/tar"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	tree := flag.String("tree", "", "the directory")
	out := flag.String("o", "", "the archive")
	command := flag.String("command", "", "what the image runs, words separated by blanks")
	flag.Parse()
	if *tree == "" || *out == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: treeimage -tree DIR -o FILE [-command WORDS] NAME...")
		os.Exit(2)
	}
	if err := run(*tree, *out, strings.Fields(*command), flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(tree, out string, command, names []string) error {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return pack(tree), nil })
	if err != nil {
		return fmt.Errorf("pack %s: %w", tree, err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Cmd = command
	config.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return err
	}
	images := map[name.Tag]v1.Image{}
	for _, text := range names {
		tag, err := name.NewTag(text)
		if err != nil {
			return err
		}
		images[tag] = image
	}
	// Whole or not at all.
	if err := tarball.MultiWriteToFile(out+".new", images); err != nil {
		return errors.Join(err, os.RemoveAll(out+".new"))
	}
	return os.Rename(out+".new", out)
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
