package lab

import (
	"bytes"
	_ "embed"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// coreDNS is what kubeadm has as an addon: the cluster's name service, at
// dnsAddress4. Its pods wait until there is a network.
//
//go:embed coredns.yaml
var coreDNS []byte

// apply gives the cluster the objects of a manifest.
func (k *kubernetes) apply(master *node, manifest []byte) error {
	var said strings.Builder
	cmd := exec.Command(filepath.Join(k.cfg.Kubernetes, "kubectl"), "--kubeconfig", k.file("kubeconfig"), "apply", "-f", "-")
	cmd.Env = hostEnvironment()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(manifest), &said, &said
	if err := master.space.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}
