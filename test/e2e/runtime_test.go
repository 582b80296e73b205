package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/cni/client"
	"github.com/twill-net/twill/lab/space"
)

// containerRuntime does on one node what a container runtime does: it calls the
// CNI executable for sandboxes that it makes.
type containerRuntime struct {
	node       string
	task       string // of the node
	socket     string // of the agent, as it is found from outside of the node
	executable string
}

func (c *cluster) newRuntime(node string) *containerRuntime {
	task := c.tasks["node/"+node]
	return &containerRuntime{
		node: node, task: task, socket: filepath.Join(task, "root/run/twill/cni.sock"),
		executable: filepath.Join(c.Config.Executables, "twill-cni"),
	}
}

// call executes the CNI executable for a sandbox, and kills it after a while
// unless that is zero. What it is configured with goes before more.
func (r *containerRuntime) call(command string, s *sandbox, killAfter time.Duration, more map[string]any) ([]byte, error) {
	config := map[string]any{"cniVersion": "1.1.0", "name": "runtime", "type": "twill-cni", "socket": r.socket}
	for key, value := range more {
		config[key] = value
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(r.executable)
	cmd.Env = s.environment(command)
	var out, problem bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &out, &problem
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if killAfter > 0 {
		defer time.AfterFunc(killAfter, func() { _ = cmd.Process.Kill() }).Stop()
	}
	if err := cmd.Wait(); err != nil {
		var said client.Error
		if json.Unmarshal(out.Bytes(), &said) != nil {
			return nil, fmt.Errorf("CNI %s of %v: %w: %s%s", command, s, err, out.Bytes(), problem.Bytes())
		}
		return nil, fmt.Errorf("CNI %s of %v: %w: code %d of %s: %w%s", command, s, err, said.Code, said.CNIVersion, &said, problem.Bytes())
	}
	return out.Bytes(), nil
}

// add attaches a sandbox, with the addresses that it wants, and returns those that
// it has got.
func (r *containerRuntime) add(s *sandbox, killAfter time.Duration, labels map[string]string, want ...netip.Addr) ([]netip.Addr, error) {
	type label struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	list := []label{}
	for k, v := range labels {
		list = append(list, label{k, v})
	}
	out, err := r.call("ADD", s, killAfter, map[string]any{"args": map[string]any{"cni": map[string]any{"labels": list, "ips": want}}})
	if err != nil {
		return nil, err
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.Addr())
	}
	return addrs, nil
}

// attachmentID is how GC names an attachment.
type attachmentID struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// sandbox is a pod's namespaces. They are there before it is attached, and may
// end at any time.
type sandbox struct {
	id, name string
	ifname   string // empty: eth0
	space    *space.Space
	links    *netlink.Handle

	mu       sync.Mutex
	listener net.Listener
	closed   bool
}

func newSandbox(id, name string) (*sandbox, error) {
	s := &sandbox{id: id, name: name}
	var err error
	if s.space, err = space.New(name); err != nil {
		return nil, err
	}
	err = s.space.Do(func() (err error) {
		s.links, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		s.space.Close()
		return nil, err
	}
	return s, nil
}

func (s *sandbox) String() string {
	if s == nil {
		return "all"
	}
	return s.id
}

// environment is what the CNI executable gets; s may be nil.
func (s *sandbox) environment(command string) []string {
	env := []string{"CNI_COMMAND=" + command, "CNI_PATH=/opt/cni/bin"}
	if s != nil {
		env = append(env, "CNI_CONTAINERID="+s.id, "CNI_NETNS="+s.netns(), "CNI_IFNAME="+cmp.Or(s.ifname, "eth0"),
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME="+s.name)
	}
	return env
}

func (s *sandbox) netns() string { return filepath.Join(s.space.Task(), "ns", "net") }

// close ends the namespaces, with all that holds them. It may be called more
// than once.
func (s *sandbox) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.listener != nil {
		s.listener.Close()
	}
	s.links.Close()
	s.space.Close()
}

// has says whether a device in the sandbox has the address.
func (s *sandbox) has(a netip.Addr) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false, nil
	}
	addrs, err := s.links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, err
	}
	for _, got := range addrs {
		if ip, ok := netip.AddrFromSlice(got.IP); ok && ip.Unmap() == a {
			return true, nil
		}
	}
	return false, nil
}

// greetPort is where a sandbox tells its id to whoever connects.
const greetPort = 80

// greet answers connections until the sandbox is closed.
func (s *sandbox) greet() error {
	var l net.Listener
	err := s.space.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", greetPort))
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, s.id)
			conn.Close()
		}
	}()
	return nil
}

// greeting is who answers at an address, as the node sees it. The node reaches
// its pods whatever policies there are.
func (r *containerRuntime) greeting(a netip.Addr) (who string, err error) {
	err = space.In(r.task, func() error {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, greetPort).String(), patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		text, err := io.ReadAll(conn)
		who = string(text)
		return err
	})
	return who, err
}
