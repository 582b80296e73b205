package lab

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/twill-net/twill/lab/registry"
	"github.com/twill-net/twill/lab/space"
)

const (
	registryPort = "5000"
	// hostsDir is where containerd looks for what stands for a registry.
	hostsDir = "/run/containerd-hosts"
)

// registryURL is where the lab's registry is: on the host outside the cluster,
// as registries are.
func (c *Config) registryURL() string {
	return "http://" + net.JoinHostPort(c.OutsideAddresses()[0].String(), registryPort)
}

// startRegistry serves all images that there are until the process ends.
func startRegistry(cfg *Config, outside *space.Space, log *slog.Logger) error {
	archives, err := filepath.Glob(filepath.Join(cfg.Kubernetes, "images", "*.tar"))
	if err != nil {
		return err
	}
	images, err := registry.Open(append(archives, filepath.Join(cfg.Executables, "twill-image.tar"))...)
	if err != nil {
		return fmt.Errorf("%w: run \"make image kubernetes VERSION=dev\"", err)
	}
	var listener net.Listener
	err = outside.Do(func() (err error) { listener, err = net.Listen("tcp", ":"+registryPort); return err })
	if err != nil {
		return fmt.Errorf("open the registry's socket: %w", err)
	}
	go func() { log.Error("the registry ended", "error", http.Serve(listener, images)) }()
	return nil
}

// pullFrom has a node's containerd take all images from a registry, whatever
// registry they name. It is called on the node's thread. containerd 1.6 reads no
// file without the table of hosts.
func pullFrom(registry string) error {
	if err := os.MkdirAll(filepath.Join(hostsDir, "_default"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(hostsDir, "_default", "hosts.toml"), fmt.Appendf(nil, "server = %q\n[host]\n", registry), 0o644)
}
