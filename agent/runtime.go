package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
)

// installExecutable gives the container runtime the twill-cni that lies beside
// the agent's own executable. It is put in its place whole: a runtime may start it
// at any moment.
func (a *Agent) installExecutable() error {
	if a.config.CNIBinDir == "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := os.ReadFile(filepath.Join(filepath.Dir(self), plan.CNIExecutable))
	if err != nil {
		return fmt.Errorf("install %s: %w", plan.CNIExecutable, err)
	}
	return install(a.config.CNIBinDir, plan.CNIExecutable, program, 0o755)
}

// installConflist tells the runtime of this network, which makes a node ready for
// pods: it is the last thing that an agent does when it starts.
func (a *Agent) installConflist() {
	if a.config.CNIConfDir == "" {
		return
	}
	if err := install(a.config.CNIConfDir, plan.CNIConflist, cni.Conflist(a.config.Socket()), 0o644); err != nil {
		a.health.Set(health.RuntimeNotConfigured, "", err.Error())
		a.log.Error("the container runtime can't be told of this network", "error", err)
		return
	}
	a.health.Clear(health.RuntimeNotConfigured, "")
	if other := earlierConfig(a.config.CNIConfDir); other != "" {
		a.health.Set(health.RuntimeNotConfigured, "", fmt.Sprintf("%s sorts before %s, so runtimes take that network", filepath.Join(a.config.CNIConfDir, other), plan.CNIConflist))
	}
}

// install writes a file whole or not at all; one that is so already is left.
func install(dir, name string, content []byte, mode os.FileMode) error {
	path := filepath.Join(dir, name)
	if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, content) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install %s: %w", name, err)
	}
	// The name is none that a runtime looks for.
	fresh := filepath.Join(dir, "."+name+".new")
	err := os.Remove(fresh)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = os.WriteFile(fresh, content, mode)
	}
	if err == nil {
		err = os.Chmod(fresh, mode) // whatever the umask
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("install %s: %w", name, err), os.RemoveAll(fresh))
	}
	return nil
}

// earlierConfig is the network configuration that runtimes take in place of ours.
func earlierConfig(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	var names []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && !strings.HasPrefix(e.Name(), ".") && slices.Contains([]string{".conflist", ".conf", ".json"}, ext) {
			names = append(names, e.Name())
		}
	}
	if first := slices.Min(append(names, plan.CNIConflist)); first != plan.CNIConflist {
		return first
	}
	return ""
}

// networkIsUp is the condition by which Kubernetes lets pods onto a node. While
// the agent restarts it stays as it was: the network goes on.
func networkIsUp(old []corev1.NodeCondition) []corev1.NodeCondition {
	up := corev1.NodeCondition{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: api.NetworkIsUp,
		Message: "Twill carries the packets of this node", LastTransitionTime: metav1.Now().Rfc3339Copy(),
	}
	i := slices.IndexFunc(old, func(c corev1.NodeCondition) bool { return c.Type == up.Type })
	switch {
	case i < 0:
		return append(slices.Clone(old), up)
	case old[i].Status == up.Status && old[i].Reason == up.Reason:
		return old
	}
	out := slices.Clone(old)
	out[i] = up
	return out
}
