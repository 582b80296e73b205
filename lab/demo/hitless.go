package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/load"
)

const (
	// rate is of each kind of traffic: with new connections and datagrams that
	// is 1,000 requests a second, beside those on one long-lived connection.
	rate = 500
	// calm is how long the load goes on before and after a change.
	calm = 700 * time.Millisecond

	writesMetric = "twill_dataplane_writes_total"
)

var hitlessSteps = []step{
	{
		"An agent is killed under 1,000 requests a second",
		"no new connection, datagram or request on a lasting connection is lost;\nthe agent comes back and writes nothing to the kernel",
		(*story).killAgent,
	},
	{
		"The fabric changes from VXLAN to host-gw and back, under the same load",
		"no request is lost",
		(*story).changeFabric,
	},
}

// underLoad sends requests from pod access to the service while f runs.
func (s *story) underLoad(ctx context.Context, f func() (string, error)) (string, error) {
	cmd, err := s.client.Command(ctx, s.place("access"), "load", "--rate", strconv.Itoa(rate), "--for", "0", "-o", "json",
		"http://nginx", "udp://nginx", "stream://nginx")
	if err != nil {
		return "", err
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		return "", err
	}
	pause(ctx, calm)
	seen, err := f()
	pause(ctx, calm)
	_ = cmd.Process.Signal(os.Interrupt)
	ended := cmd.Wait()
	var failed *exec.ExitError
	if ended != nil && !errors.As(ended, &failed) {
		return seen, errors.Join(err, ended)
	}
	var results []load.Result
	if e := json.Unmarshal(out.Bytes(), &results); e != nil {
		return seen, errors.Join(err, fmt.Errorf("load: %s", strings.TrimSpace(errs.String())))
	}
	for _, r := range results {
		seen += "\n" + r.String()
		if r.Lost > 0 {
			err = errors.Join(err, fmt.Errorf("%d requests to %s were lost", r.Lost, r.Target))
		}
		if r.Sent == 0 {
			err = errors.Join(err, fmt.Errorf("no request was sent to %s", r.Target))
		}
	}
	return seen, err
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (s *story) killAgent(ctx context.Context) (string, error) {
	// The node of the client: it translates the service's address.
	const node = "master"
	seen, err := s.underLoad(ctx, func() (string, error) {
		if err := s.client.Control(lab.ControlRequest{Node: node, Action: lab.Kill}); err != nil {
			return "", err
		}
		pause(ctx, calm)
		began := time.Now()
		if err := s.client.Control(lab.ControlRequest{Node: node, Action: lab.Start}); err != nil {
			return "", err
		}
		return fmt.Sprintf("the agent of %s was killed (-9), and started %.1f s later; ready in %.2f s",
			node, calm.Seconds(), time.Since(began).Seconds()), nil
	})
	if err != nil {
		return seen, err
	}
	writes, err := s.writes(ctx, node)
	seen += fmt.Sprintf("\nthe new agent has written %d objects to the kernel", writes)
	if err == nil && writes != 0 {
		err = errors.New("it should have found all as it must be")
	}
	return seen, err
}

// writes is how many objects a node's agent has written to the kernel since it
// was started.
func (s *story) writes(ctx context.Context, node string) (int, error) {
	text, err := s.at(ctx, lab.Node(node), "wget", "-q", "-O", "-", lab.AgentMetrics)
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name != writesMetric && !strings.HasPrefix(name, writesMetric+"{") {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum, found = sum+n, true
	}
	if !found {
		return 0, fmt.Errorf("the agent of %s has no metric %s", node, writesMetric)
	}
	return int(sum), nil
}

func (s *story) changeFabric(ctx context.Context) (string, error) {
	return s.underLoad(ctx, func() (string, error) {
		var seen []string
		for _, change := range []struct{ backend, device string }{{"host-gw", linkDevice}, {"vxlan", tunnelDevice}} {
			began := time.Now()
			if _, err := s.twill(ctx, "", "fabric", "set", change.backend); err != nil {
				return strings.Join(seen, "\n"), err
			}
			if err := s.awaitWay(ctx, change.device); err != nil {
				return strings.Join(seen, "\n"), err
			}
			seen = append(seen, fmt.Sprintf("$ twill fabric set %-8s  all nodes send by %s after %.2f s", change.backend, change.device, time.Since(began).Seconds()))
			pause(ctx, calm)
		}
		return strings.Join(seen, "\n"), nil
	})
}

// awaitWay waits until every node reaches every other's pods by the device.
func (s *story) awaitWay(ctx context.Context, device string) error {
	remote := map[string]netip.Addr{}
	for _, p := range s.pods {
		remote[p.Node] = p.Address()
	}
	_, err := eventually(ctx, 10*time.Second, func() error {
		for _, from := range s.client.Config.NodeNames() {
			for node, pod := range remote {
				if node == from {
					continue
				}
				got, err := s.way(from, pod)
				if err != nil {
					return err
				}
				if got != device {
					return fmt.Errorf("%s reaches %s of %s by %s", from, pod, node, got)
				}
			}
		}
		return nil
	})
	return err
}
