package preflight

import (
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
	"github.com/twill-net/twill/process"
)

// runtimes are the container runtimes that we know, by the sockets that they
// listen at.
var runtimes = []struct{ name, socket string }{
	{"containerd", "run/containerd/containerd.sock"},
	{"CRI-O", "run/crio/crio.sock"},
	{"cri-dockerd", "run/cri-dockerd.sock"},
}

// configOf is the file, relative to the root, that a program which runs was started
// with; where none runs, or nothing was said, the one that it reads by itself.
func (f *Facts) configOf(program, usual string) string {
	for _, p := range process.Running(f.Files, program) {
		if file := p.Flag("--config", "-config", "-c"); path.IsAbs(file) {
			return path.Clean(file)[1:]
		}
	}
	return usual
}

// containerdFile is containerd's configuration.
func (f *Facts) containerdFile() string {
	return f.configOf("containerd", "etc/containerd/config.toml")
}

func (f *Facts) runtime() string {
	for _, r := range runtimes {
		if f.exists(r.socket) {
			return r.name
		}
	}
	return ""
}

// checkRuntime judges whether a container runtime is there that will find Twill.
func checkRuntime(f *Facts) (string, []Finding) {
	name := f.runtime()
	if name == "" {
		return "none", []Finding{found(health.RuntimeMissing, "there is no socket of containerd, CRI-O or cri-dockerd below /run")}
	}
	var out []Finding
	file := f.containerdFile()
	text := f.text(file)
	if name == "containerd" {
		if strings.Contains(setting(text, "disabled_plugins"), `"cri"`) {
			out = append(out, found(health.RuntimeWithoutCRI, "/%s has \"cri\" among disabled_plugins", file))
		}
		if !f.exists(path.Join(plan.CNIBinDir[1:], "loopback")) {
			out = append(out, found(health.LoopbackMissing, "there is no %s/loopback", plan.CNIBinDir))
		}
		for key, want := range map[string]string{"conf_dir": plan.CNIConfDir, "bin_dir": plan.CNIBinDir} {
			if have := strings.Trim(setting(text, key), `'"`); have != "" && path.Clean(have) != want {
				out = append(out, found(health.RuntimeLooksAside, "/%s has %s = %s; Twill writes to %s", file, key, have, want))
			}
		}
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Detail, b.Detail) })
	return name, out
}

// checkCgroups compares what the kubelet and the runtime say. Before there is a
// kubelet there is nothing to compare.
func checkCgroups(f *Facts) (string, []Finding) {
	k := f.kubelet()
	if k == nil {
		return "no kubelet yet", nil
	}
	kubelet := k.CgroupDriver
	if kubelet == "" {
		kubelet = "cgroupfs" // its own default; kubeadm's is systemd, and is written
	}
	var runtime string
	switch f.runtime() {
	case "containerd":
		runtime = "cgroupfs"
		if setting(f.text(f.containerdFile()), "SystemdCgroup") == "true" {
			runtime = "systemd"
		}
	case "CRI-O":
		runtime = "systemd"
		if v := strings.Trim(setting(f.crio(), "cgroup_manager"), `"`); v != "" {
			runtime = v
		}
	default:
		return kubelet, nil
	}
	if runtime != kubelet {
		return "they differ", []Finding{found(health.CgroupDriverDiffers, "the kubelet uses %s (/%s), %s uses %s", kubelet, f.kubeletFile(), f.runtime(), runtime)}
	}
	return kubelet, nil
}

// crio is CRI-O's configuration: what comes later wins.
func (f *Facts) crio() string {
	names, err := fs.Glob(f.Files, "etc/crio/crio.conf.d/*")
	if err != nil {
		return ""
	}
	text := f.text(f.configOf("crio", "etc/crio/crio.conf"))
	for _, name := range names {
		text += "\n" + f.text(name)
	}
	return text
}

// setting is the last value of a key, wherever it stands in a file of TOML: the
// keys that we look for have the same meaning in whichever version's table they are.
func setting(text, key string) string {
	all := regexp.MustCompile(`(?m)^\s*`+regexp.QuoteMeta(key)+`\s*=\s*(.*?)\s*(?:#.*)?$`).FindAllStringSubmatch(text, -1)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1][1]
}
