package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twill-net/twill/cni/client"
	"github.com/twill-net/twill/lab/space"
)

// Limits of one call of the CNI executable, and of trying it again while it
// asks for that. A runtime gives an attachment up, and a detachment never.
const (
	cniTimeout     = 30 * time.Second
	cniAddPatience = 2 * time.Second
	cniDelPatience = 10 * time.Second
	cniRetryPause  = 50 * time.Millisecond
	codeTryLater   = 11 // CNI specification, "Error"
)

// Port is a port of a pod.
type Port struct {
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol"` // TCP or UDP; empty: both
	Port     int    `json:"port"`
}

// ParsePort reads [NAME=]PORT[/tcp|/udp].
func ParsePort(text string) (Port, error) {
	name, number, named := strings.Cut(text, "=")
	if !named {
		name, number = "", text
	}
	number, protocol, given := strings.Cut(number, "/")
	protocol = strings.ToUpper(protocol)
	if given && protocol != "TCP" && protocol != "UDP" {
		return Port{}, fmt.Errorf("port %q: the protocol is tcp or udp; without one the port is for both", text)
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > 65535 || (named && name == "") {
		return Port{}, fmt.Errorf("port %q: write a number from 1 to 65535, or NAME=NUMBER", text)
	}
	return Port{Name: name, Protocol: protocol, Port: n}, nil
}

// attachment is what the CNI executable is told of one pod.
type attachment struct {
	containerID     string
	netns           string
	namespace, name string
	labels          map[string]string
	ports           []Port
	result          json.RawMessage // of ADD, which DEL gets again
}

type keyValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// config is the network configuration as a runtime passes it; "args" holds what
// it knows of the pod (CNI conventions, "args in network config").
func (a *attachment) config() ([]byte, error) {
	labels := []keyValue{}
	for k, v := range a.labels {
		labels = append(labels, keyValue{k, v})
	}
	slices.SortFunc(labels, func(x, y keyValue) int { return strings.Compare(x.Key, y.Key) })
	ports := []Port{}
	for _, p := range a.ports {
		for _, protocol := range []string{"TCP", "UDP"} {
			if p.Protocol == "" || p.Protocol == protocol {
				ports = append(ports, Port{Name: p.Name, Protocol: protocol, Port: p.Port})
			}
		}
	}
	config := map[string]any{
		"cniVersion": "1.0.0",
		"name":       "twill",
		"type":       cniExecutable,
		"args": map[string]any{
			"cni":      map[string]any{"labels": labels},
			"twill.io": map[string]any{"ports": ports},
		},
	}
	if a.result != nil {
		config["prevResult"] = a.result
	}
	return json.Marshal(config)
}

func (a *attachment) environment(command string) []string {
	return []string{
		"PATH=" + searchPath,
		"CNI_COMMAND=" + command,
		"CNI_CONTAINERID=" + a.containerID,
		"CNI_NETNS=" + a.netns,
		"CNI_IFNAME=eth0",
		"CNI_PATH=" + cniBinDir,
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s", a.namespace, a.name),
	}
}

// cniError is a CNI error result.
type cniError struct {
	Code    int    `json:"code"`
	Message string `json:"msg"`
	Details string `json:"details"`
}

func (e *cniError) Error() string {
	text := e.Message
	if e.Details != "" {
		text += ": " + e.Details
	}
	return fmt.Sprintf("%s (CNI error %d)", text, e.Code)
}

// add attaches the pod to the network of a node, and returns its addresses. What
// a failed attachment may have left is taken down, as runtimes do it.
func (a *attachment) add(node *space.Space) ([]netip.Addr, error) {
	out, err := a.insist(node, "ADD", cniAddPatience)
	if err != nil {
		_, _ = a.call(node, "DEL") // where nobody answers nothing was done, or it goes with its namespace
		return nil, err
	}
	a.result = out
	return parseAddresses(out)
}

// del detaches the pod.
func (a *attachment) del(node *space.Space) error {
	_, err := a.insist(node, "DEL", cniDelPatience)
	return err
}

// insist calls again while the answer is to try again later.
func (a *attachment) insist(node *space.Space, command string, patience time.Duration) ([]byte, error) {
	deadline := time.Now().Add(patience)
	for {
		out, err := a.call(node, command)
		var failed *cniError
		if !errors.As(err, &failed) || failed.Code != codeTryLater || time.Now().After(deadline) {
			return out, err
		}
		time.Sleep(cniRetryPause)
	}
}

func (a *attachment) call(node *space.Space, command string) ([]byte, error) {
	config, err := a.config()
	if err != nil {
		return nil, err
	}
	return callCNI(node, command, a.environment(command), config)
}

// cniStatus asks whether pods can be attached to a node. It asks the agent itself:
// while one starts it is asked all the time, and a process for each question would
// take the agent's processor.
func cniStatus(node *space.Space) error {
	socket := filepath.Join(node.Task(), "root", client.DefaultSocket)
	reply, err := client.Call(socket, []string{"CNI_COMMAND=" + client.Status, "CNI_PATH=" + cniBinDir},
		fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"twill","type":%q}`, cniExecutable))
	if err != nil || reply.Status == 0 {
		return err
	}
	failed := new(cniError)
	if err := json.Unmarshal(reply.Output, failed); err != nil {
		return fmt.Errorf("CNI STATUS: %w", err)
	}
	return failed
}

// callCNI executes the CNI executable as a container runtime does.
func callCNI(node *space.Space, command string, env []string, config []byte) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(filepath.Join(cniBinDir, cniExecutable))
	cmd.Env = env
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(config), &out, &errs
	if err := node.Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", cniExecutable, err)
	}
	timer := time.AfterFunc(cniTimeout, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	expired := !timer.Stop()
	switch {
	case err == nil:
		return out.Bytes(), nil
	case expired:
		return nil, fmt.Errorf("CNI %s did not answer within %s", command, cniTimeout)
	}
	failed := new(cniError)
	if json.Unmarshal(out.Bytes(), failed) == nil && failed.Code != 0 {
		return nil, fmt.Errorf("CNI %s: %w", command, failed)
	}
	return nil, fmt.Errorf("CNI %s: %w: %s%s", command, err, out.String(), errs.String())
}

func parseAddresses(result []byte) ([]netip.Addr, error) {
	var r struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(result, &r); err != nil {
		return nil, fmt.Errorf("read CNI result %q: %w", result, err)
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		if ip.Address.IsValid() {
			out = append(out, ip.Address.Addr())
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("CNI result without addresses: %q", result)
	}
	return out, nil
}
