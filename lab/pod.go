package lab

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/lab/tool"
)

// killPatience bounds the wait for killed processes to be gone.
const killPatience = 5 * time.Second

// pod is a space that is attached to a node's network.
type pod struct {
	namespace, name string
	labels          map[string]string
	node            *node
	mark            string
	space           *space.Space
	attachment      attachment
	addresses       []netip.Addr
	main            *process // nil: nothing but what is executed by hand
}

// environment is what a process in a pod knows of itself.
func podEnvironment(namespace, name, node string) []string {
	return []string{
		"PATH=" + searchPath, "HOME=/root",
		tool.EnvName + "=" + name, tool.EnvNamespace + "=" + namespace, tool.EnvNode + "=" + node,
	}
}

// newPod makes the namespaces and attaches them. After an error nothing is left.
func newPod(cfg *Config, n *node, namespace, name string, labels map[string]string, ports []Port) (_ *pod, err error) {
	var id [32]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	containerID := hex.EncodeToString(id[:])
	p := &pod{namespace: namespace, name: name, labels: labels, node: n,
		mark: fmt.Sprintf("%s/pod/%s", mark(cfg.Name), containerID[:12])}
	if p.space, err = space.New(name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.space.Close()
		}
	}()
	err = p.space.Do(func() error {
		return furniture{mark: p.mark, executables: cfg.Executables}.furnish()
	})
	if err != nil {
		return nil, fmt.Errorf("furnish pod %s/%s: %w", namespace, name, err)
	}
	p.attachment = attachment{
		containerID: containerID, netns: filepath.Join(p.space.Task(), "ns", "net"),
		namespace: namespace, name: name, labels: labels, ports: ports,
	}
	if p.addresses, err = p.attachment.add(n.space); err != nil {
		return nil, fmt.Errorf("attach pod %s/%s on %s: %w", namespace, name, n.name, err)
	}
	err = p.space.Do(func() error {
		return writeNames([]host{{name, p.addresses}}, podResolver(namespace, cfg.nameServers()))
	})
	if err != nil {
		return nil, fmt.Errorf("furnish pod %s/%s: %w", namespace, name, err)
	}
	return p, nil
}

// run starts the pod's main process: the command or, without one, a web server
// on each port, for which it waits to listen.
func (p *pod) run(log string, command []string, ports []Port) error {
	p.main = &process{
		name: fmt.Sprintf("pod %s/%s", p.namespace, p.name), space: p.space, log: log,
		env: podEnvironment(p.namespace, p.name, p.node.name), argv: command,
	}
	if len(command) > 0 {
		return p.main.start()
	}
	p.main.argv = []string{"web"}
	for _, port := range ports {
		p.main.argv = append(p.main.argv, "--port", strconv.Itoa(port.Port))
	}
	ready, told, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	p.main.env = append(p.main.env, tool.EnvReady+"=3")
	err = p.main.start(told)
	told.Close()
	if err != nil {
		return err
	}
	if err := ready.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if n, _ := ready.Read(make([]byte, 1)); n == 0 {
		return fmt.Errorf("the web server of pod %s/%s does not listen%s", p.namespace, p.name, tail(log))
	}
	return nil
}

// remove detaches the pod, then ends it. The error is that of detaching; the
// pod is gone in any case.
func (p *pod) remove() error {
	err := p.attachment.del(p.node.space)
	p.space.Close()
	if killErr := space.KillMarked(p.mark, killPatience); err == nil {
		err = killErr
	}
	if err != nil {
		return fmt.Errorf("remove pod %s/%s: %w", p.namespace, p.name, err)
	}
	return nil
}

func (p *pod) status() PodStatus {
	s := PodStatus{Namespace: p.namespace, Name: p.name, Node: p.node.name, Addresses: p.addresses, Labels: p.labels, State: "Running"}
	if p.main == nil {
		return s
	}
	state := p.main.status()
	s.PID = state.PID
	switch {
	case state.Running:
	case state.Code == 0:
		s.State = "Completed"
	default:
		s.State = fmt.Sprintf("Error (%s)", strings.TrimPrefix(state.Ended, "signal: "))
	}
	return s
}
