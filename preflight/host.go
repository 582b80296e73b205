package preflight

import (
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/health"
)

// kubeletFile is the kubelet's configuration; before there is a kubelet, where
// kubeadm writes it.
func (f *Facts) kubeletFile() string { return f.configOf("kubelet", "var/lib/kubelet/config.yaml") }

// kubeletConfiguration is what we read of a kubelet's configuration.
type kubeletConfiguration struct {
	FailSwapOn   *bool  `json:"failSwapOn"`
	CgroupDriver string `json:"cgroupDriver"`
}

// kubelet is the kubelet's configuration; nil if there is none yet.
func (f *Facts) kubelet() *kubeletConfiguration {
	var c kubeletConfiguration
	text := f.text(f.kubeletFile())
	if text == "" || yaml.Unmarshal([]byte(text), &c) != nil {
		return nil
	}
	return &c
}

func checkSwap(f *Facts) (string, []Finding) {
	var devices []string
	for i, line := range strings.Split(strings.TrimSpace(f.text("proc/swaps")), "\n") {
		if name := strings.Fields(line); i > 0 && len(name) > 0 { // the first line is the titles
			devices = append(devices, name[0])
		}
	}
	if len(devices) == 0 {
		return "none", nil
	}
	seen := strings.Join(devices, ", ")
	if k := f.kubelet(); k != nil && k.FailSwapOn != nil && !*k.FailSwapOn {
		return seen + ", which the kubelet allows", nil
	}
	return seen, []Finding{found(health.SwapOn, "swap is on %s", seen)}
}

func checkSELinux(f *Facts) (string, []Finding) {
	switch strings.TrimSpace(f.text("sys/fs/selinux/enforce")) {
	case "":
		return "not in use", nil
	case "0":
		return "permissive", nil
	}
	return "enforcing", []Finding{found(health.SELinuxEnforcing, "SELinux is enforcing")}
}

func checkClock(f *Facts) (string, []Finding) {
	if f.Synchronised {
		return "synchronised", nil
	}
	return "not synchronised", []Finding{found(health.ClockUnsynchronised, "the kernel says that the clock is not synchronised")}
}
