package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/twill-net/twill/lab/space"
	"github.com/twill-net/twill/store"
	"github.com/twill-net/twill/store/etcd"
)

// Client talks to the supervisor of a lab that is up. Its methods may be called
// concurrently.
type Client struct {
	Config Config
	rpc    *rpc.Client
}

// Dial connects to a lab.
func Dial(name string) (*Client, error) {
	cfg, err := Load(name)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("unix", socketPath(name))
	if err != nil {
		return nil, fmt.Errorf("the supervisor of lab %q does not answer: clean up with \"twill lab down --name %s\" (%w)", name, name, err)
	}
	return &Client{cfg, jsonrpc.NewClient(conn)}, nil
}

// Close ends the connection, not the lab.
func (c *Client) Close() error { return c.rpc.Close() }

func (c *Client) call(method string, in, out any) error {
	err := c.rpc.Call("Lab."+method, in, out)
	if errors.Is(err, rpc.ErrShutdown) {
		return fmt.Errorf("lab %q went down meanwhile", c.Config.Name)
	}
	return err
}

// Status tells what there is.
func (c *Client) Status() (out Status, err error) {
	err = c.call("Status", Nothing{}, &out)
	return out, err
}

// Run makes pods and returns when they are attached and, if they are web
// servers, listen.
func (c *Client) Run(r RunRequest) (out []PodStatus, err error) {
	err = c.call("Run", r, &out)
	return out, err
}

// Remove ends pods and returns their names.
func (c *Client) Remove(r RemoveRequest) (out []string, err error) {
	err = c.call("Remove", r, &out)
	return out, err
}

// Enter tells how to get to a place.
func (c *Client) Enter(at Place) (out Entrance, err error) {
	err = c.call("Enter", at, &out)
	return out, err
}

// Control stops, starts or kills a process of the lab and returns when that is
// done; an agent that is started is ready then.
func (c *Client) Control(r ControlRequest) error { return c.call("Control", r, &Nothing{}) }

// Reboot takes from a node of Kubernetes what a machine loses with its power: all
// processes, the network with all that is in it, mounts and /run. What is on disk
// stays. It returns when the kubelet runs again.
func (c *Client) Reboot(node string) error { return c.call("Reboot", node, &Nothing{}) }

// Store opens the lab's store, which the caller closes.
func (c *Client) Store(ctx context.Context) (store.Store, error) {
	return etcd.Open(ctx, etcd.Config{Endpoints: []string{EtcdEndpoint(c.Config.Name)}})
}

// Command is a command that is executed at a place; the caller sets what else
// it wants and starts it.
func (c *Client) Command(ctx context.Context, at Place, argv ...string) (*exec.Cmd, error) {
	entrance, err := c.Enter(at)
	if err != nil {
		return nil, err
	}
	self := filepath.Join(c.Config.Executables, labExecutable)
	cmd := exec.CommandContext(ctx, self, append([]string{"enter", entrance.Task, "--"}, argv...)...)
	cmd.Env = entrance.environ()
	return cmd, nil
}

// environ is the caller's environment with what holds at the place.
func (e Entrance) environ() []string { return append(os.Environ(), e.Environment...) }

// Exec turns the calling process into a command at the place. It returns only
// if that fails.
func (e Entrance) Exec(argv []string) error {
	for _, variable := range e.Environment {
		key, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(key, value); err != nil {
			return err
		}
	}
	return Exec(e.Task, argv)
}

// Exec turns the calling process into a command in the namespaces of a task,
// with the environment as it is. It returns only if that fails.
func Exec(task string, argv []string) error {
	if len(argv) == 0 {
		return errors.New("no command is given: write it after --")
	}
	if err := space.Enter(task); err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, argv, os.Environ()); err != nil {
		return fmt.Errorf("execute %s: %w", path, err)
	}
	return nil
}
