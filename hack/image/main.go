// Command image writes Twill's container image as an OCI archive: the static
// executables for each architecture, and nothing else. The same commit gives the
// same bytes. Beside the archive it writes what the executables are made of, as a
// CycloneDX bill of materials.
//
// It needs no container engine, and pushes nothing anywhere.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/twill-net/twill/hack/archive"
)

// binDir is where the executables are in the image.
const binDir = "usr/local/bin"

// executables are what runs in a cluster.
var executables = []string{"twill", "twill-cni"}

func main() {
	name := flag.String("name", "ghcr.io/twill-net/twill", "the image's name")
	version := flag.String("version", "dev", "its tag, and the version that the executables tell")
	arches := flag.String("arch", "amd64,arm64", "architectures, separated by commas")
	out := flag.String("o", "bin/twill-image.tar", "the archive")
	flag.Parse()
	if err := run(*name, *version, strings.Split(*arches, ","), *out); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(name, version string, arches []string, out string) error {
	work, err := os.MkdirTemp(filepath.Dir(out), ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range arches {
		fmt.Fprintf(os.Stderr, "building for linux/%s\n", arch)
		dir := filepath.Join(work, arch)
		if err := build(dir, arch, version); err != nil {
			return err
		}
		image, err := imageOf(dir, arch, version)
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: arch},
		}})
	}
	if err := writeBill(strings.TrimSuffix(out, ".tar")+".cdx.json", filepath.Join(work, arches[0]), version); err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	if err := archive.Write(out, index, name+":"+version); err != nil {
		return err
	}
	fmt.Printf("%s: %s:%s %s\n", out, name, version, digest)
	return nil
}

// build makes the executables of one architecture.
func build(dir, arch, version string) error {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=" + version, "-o", dir + "/"}
	for _, name := range executables {
		args = append(args, "github.com/twill-net/twill/cmd/"+name)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build for %s: %w", arch, err)
	}
	return nil
}

func imageOf(dir, arch, version string) (v1.Image, error) {
	text, err := layerOf(dir)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config.Entrypoint = []string{"/" + binDir + "/twill"}
	config.Config.Env = []string{"PATH=/" + binDir}
	config.Config.Labels = map[string]string{
		"org.opencontainers.image.title":    "Twill",
		"org.opencontainers.image.version":  version,
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
	return mutate.ConfigFile(image, config)
}

// layerOf holds the executables. Times are none: they would differ each time.
func layerOf(dir string) ([]byte, error) {
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	for _, parent := range []string{"usr/", "usr/local/", binDir + "/", "run/", "var/"} {
		if err := w.WriteHeader(&tar.Header{Name: parent, Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
			return nil, err
		}
	}
	// Runtimes name namespaces below /var/run, which is /run on every node.
	if err := w.WriteHeader(&tar.Header{Name: "var/run", Linkname: "../run", Mode: 0o777, Typeflag: tar.TypeSymlink}); err != nil {
		return nil, err
	}
	for _, name := range executables {
		if err := archive.AddFile(w, binDir+"/"+name, filepath.Join(dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), w.Close()
}
