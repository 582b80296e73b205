package lab

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

const (
	containerd       = "/usr/bin/containerd"
	runc             = "/usr/sbin/runc"
	containerdSocket = "/run/containerd/containerd.sock"
	kubeletDir       = "/var/lib/kubelet"
	pauseImage       = "registry.k8s.io/pause:3.10.1"
)

// makeKubelet gives a node a container runtime and a kubelet.
func (k *kubernetes) makeKubelet(n *node) error {
	conf, err := k.kubeconfig(nodeToken(n.name))
	if err != nil {
		return err
	}
	config, err := yaml.Marshal(k.kubeletConfiguration())
	if err != nil {
		return err
	}
	err = n.space.Do(func() error {
		for path, content := range map[string][]byte{
			"/etc/kubernetes/kubelet.conf": conf,
			"/run/kubelet.yaml":            config,
			"/run/containerd.toml":         []byte(containerdConfiguration),
		} {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make %s a node of Kubernetes: %w", n.name, err)
	}
	n.runtime = &process{
		name: "containerd of " + n.name, space: n.space, log: LogPath(k.cfg.Name, "containerd-"+n.name), env: hostEnvironment(),
		argv: []string{containerd, "--config", "/run/containerd.toml"},
	}
	n.kubelet = &process{
		name: "kubelet of " + n.name, space: n.space, log: LogPath(k.cfg.Name, "kubelet-"+n.name), env: hostEnvironment(),
		argv: []string{filepath.Join(k.cfg.Kubernetes, "kubelet"), "--config=/run/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf",
			"--node-ip=" + join(n.addresses), "--root-dir=" + kubeletDir},
	}
	return nil
}

func (k *kubernetes) kubeletConfiguration() map[string]any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"clusterDNS":               []string{dnsAddress4.String()}, "clusterDomain": clusterName,
		// The API server comes as itself; nobody else comes here.
		"authentication": map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":  map[string]any{"mode": "AlwaysAllow"},
		// Nodes share the machine's resources, which are not the lab's to divide.
		"failCgroupV1": false, "cgroupsPerQOS": false, "enforceNodeAllocatable": []string{}, "cgroupDriver": "cgroupfs",
		"failSwapOn": false, "localStorageCapacityIsolation": false,
		"evictionHard":                map[string]string{"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent": 100,
		"nodeStatusUpdateFrequency":   "4s",
		"syncFrequency":               "10s",
		"containerLogMaxSize":         "1Mi",
	}
}

const containerdConfiguration = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
`

// startKubelets starts runtimes, gives them the images, and starts the kubelets;
// it returns when all nodes are registered.
func (k *kubernetes) startKubelets(ctx context.Context, nodes []*node) error {
	for _, n := range nodes {
		if err := n.runtime.start(); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := n.runtime.await(func() bool { return ctr(n, "version") == nil }, kubernetesPatience); err != nil {
			return err
		}
		if err := k.importImages(n); err != nil {
			return err
		}
		if err := n.kubelet.start(); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		registered := func() bool { return k.get(ctx, n, "/api/v1/nodes/"+n.name) == http.StatusOK }
		if err := n.kubelet.await(registered, kubernetesPatience); err != nil {
			return err
		}
	}
	return nil
}

func (k *kubernetes) importImages(n *node) error {
	images, err := filepath.Glob(filepath.Join(k.cfg.Kubernetes, "images", "*.tar"))
	if err != nil {
		return err
	}
	images = append(images, filepath.Join(k.cfg.Executables, "twill-image.tar"))
	for _, image := range images {
		file, err := os.Open(image)
		if err != nil {
			return err
		}
		err = ctrWith(n, file, "images", "import", "-")
		file.Close()
		if err != nil {
			return fmt.Errorf("give %s the image %s: %w", n.name, filepath.Base(image), err)
		}
	}
	return nil
}

func ctr(n *node, args ...string) error { return ctrWith(n, nil, args...) }

// ctrWith runs containerd's own client in a node.
func ctrWith(n *node, stdin *os.File, args ...string) error {
	var said strings.Builder
	cmd := exec.Command("/usr/bin/ctr", append([]string{"--address", containerdSocket, "-n", "k8s.io"}, args...)...)
	cmd.Env = hostEnvironment()
	if stdin != nil {
		cmd.Stdin = stdin
	}
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := n.space.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}
