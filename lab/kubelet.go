package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
	"sigs.k8s.io/yaml"
)

const (
	containerd       = "/usr/bin/containerd"
	runc             = "/usr/sbin/runc"
	containerdSocket = "/run/containerd/containerd.sock"
	containerdDir    = "/var/lib/containerd"
	kubeletDir       = "/var/lib/kubelet"
	// kubeletKubeconfig is not where kubeadm has it: nothing of Twill may rely on that.
	kubeletKubeconfig = "/run/kubelet.kubeconfig"
	pauseImage        = "registry.k8s.io/pause:3.10.1"
)

// configureKubelet writes what a node's container runtime and kubelet read.
func (k *kubernetes) configureKubelet(n *node) error {
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
			kubeletKubeconfig:      conf,
			"/run/kubelet.yaml":    config,
			"/run/containerd.toml": []byte(containerdConfiguration),
		} {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				return err
			}
		}
		return pullFrom(k.cfg.registryURL())
	})
	if err != nil {
		return fmt.Errorf("make %s a node of Kubernetes: %w", n.name, err)
	}
	return nil
}

// makeKubelet gives a node a container runtime and a kubelet. At which address the
// node is, the kubelet finds by its name, in /etc/hosts.
func (k *kubernetes) makeKubelet(n *node) error {
	if err := k.configureKubelet(n); err != nil {
		return err
	}
	n.runtime = &process{
		name: "containerd of " + n.name, space: n.space, log: LogPath(k.cfg.Name, "containerd-"+n.name), env: hostEnvironment(),
		argv: []string{containerd, "--config", "/run/containerd.toml"},
	}
	n.kubelet = &process{
		name: "kubelet of " + n.name, space: n.space, log: LogPath(k.cfg.Name, "kubelet-"+n.name), env: hostEnvironment(),
		argv: []string{filepath.Join(k.cfg.Kubernetes, "kubelet"), "--config=/run/kubelet.yaml", "--kubeconfig=" + kubeletKubeconfig,
			"--root-dir=" + kubeletDir},
	}
	return nil
}

// kubeProxy is a process of a node that serves Services there.
func (k *kubernetes) kubeProxy(n *node) *process {
	return &process{
		name: "kube-proxy of " + n.name, space: n.space, log: LogPath(k.cfg.Name, "kube-proxy-"+n.name), env: hostEnvironment(),
		argv: []string{filepath.Join(k.cfg.Kubernetes, "kube-proxy"), "--kubeconfig=" + k.file("kubeconfig"), "--proxy-mode=nftables",
			"--cluster-cidr=" + join(k.cfg.Pools), "--hostname-override=" + n.name,
			"--conntrack-max-per-core=0"}, // the machine's, which a namespace can't set
	}
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
		"failSwapOn": false,
		// It takes them for resized now and then, and kubelet panics without their
		// cgroups.
		"featureGates":                map[string]bool{"InPlacePodVerticalScaling": false},
		"evictionHard":                map[string]string{"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent": 100,
		"nodeStatusUpdateFrequency":   "4s",
		"syncFrequency":               "10s",
		"containerLogMaxSize":         "1Mi",
	}
}

const containerdConfiguration = `version = 2
root = "` + containerdDir + `"
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
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "` + hostsDir + `"
`

// startKubelets starts runtimes, and kubelets when these answer; it returns when
// all nodes are registered, and have a kube-proxy if the lab does.
func (k *kubernetes) startKubelets(ctx context.Context, nodes []*node) error {
	for _, n := range nodes {
		if err := n.runtime.start(); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := n.runtime.await(func() bool { return runtimeAnswers(n) }, kubernetesPatience); err != nil {
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
		if !k.cfg.KubeProxy {
			continue
		}
		if err := k.kubeProxy(n).start(); err != nil {
			return err
		}
	}
	return nil
}

// runtimeAnswers asks a runtime for its version: it listens before it has found what
// it had before it was restarted, and answers after.
func runtimeAnswers(n *node) bool {
	dial := func(context.Context, string) (c net.Conn, err error) {
		err = n.space.Do(func() error { c, err = net.Dial("unix", containerdSocket); return err })
		return c, err
	}
	conn, err := grpc.NewClient("passthrough:///"+n.name, grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return false
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return conn.Invoke(ctx, "/runtime.v1.RuntimeService/Version", &emptypb.Empty{}, &emptypb.Empty{}) == nil
}
