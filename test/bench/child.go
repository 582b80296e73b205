package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// childWord is the first argument of this executable's children.
const childWord = "child"

// child is what a child does: "serve" and "drive" send traffic on a processor,
// "measure" takes one round of figures at scale.
func child(what string, args []string) error {
	switch {
	case what == "measure" && len(args) == 2:
		return measureOnce(args[0], args[1] == "quick")
	case (what == "serve" || what == "drive") && len(args) == 2:
		cpu, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		port, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		if what == "serve" {
			return serveTraffic(cpu, port)
		}
		return driveTraffic(cpu)
	}
	return fmt.Errorf("bench child %s %q: only bench itself starts its children", what, args)
}

// trafficCPU is the processor on which both ends of all traffic run: the last,
// as interrupts of machines tend to be on the first.
func trafficCPU(cpus int) int { return cpus - 1 }

// client is a child that drives traffic to a server, which is one too.
type client struct {
	cpu    int
	drive  *exec.Cmd
	serve  *exec.Cmd
	orders io.Writer
	found  *json.Decoder
}

// newClient starts a server on a port in one namespace and a client in another.
// They end with these.
func (b *bench) newClient(from, to *namespace, port int) (*client, error) {
	c := &client{cpu: trafficCPU(b.report.CPUs)}
	var err error
	if c.serve, _, _, err = b.startChild(to, "serve", c.cpu, port); err != nil {
		return nil, err
	}
	var answers io.Reader
	if c.drive, c.orders, answers, err = b.startChild(from, "drive", c.cpu, port); err != nil {
		return nil, err
	}
	c.found = json.NewDecoder(answers)
	return c, nil
}

func (b *bench) startChild(in *namespace, what string, cpu, port int) (*exec.Cmd, io.Writer, io.Reader, error) {
	cmd := exec.Command(b.self, childWord, what, strconv.Itoa(cpu), strconv.Itoa(port))
	cmd.Stderr = os.Stderr
	// Blocking system calls hold Go's only processor, which must not be asked
	// for it by signals.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1")
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	if err := in.Start(cmd); err != nil {
		return nil, nil, nil, err
	}
	lines := bufio.NewReader(output)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		return nil, nil, nil, fmt.Errorf("start %s in %s: %w", what, in.name, noError(err))
	}
	return cmd, input, lines, nil
}

// sent is the traffic of a round with the processor time that it took.
type sent struct {
	traffic
	cpuSeconds float64
}

func (c *client) send(mode byte, to netip.Addr, port int, length time.Duration) (s sent, err error) {
	before, err := c.cpuTime()
	if err != nil {
		return s, err
	}
	if _, err := fmt.Fprintf(c.orders, "%c %s %d\n", mode, netip.AddrPortFrom(to, uint16(port)), length.Milliseconds()); err != nil {
		return s, err
	}
	if err := c.found.Decode(&s.traffic); err != nil {
		return s, fmt.Errorf("traffic to %s: %w", to, err)
	}
	after, err := c.cpuTime()
	s.cpuSeconds = after - before
	return s, err
}

// cpuTime is that of both ends, and of the kernel's thread that may work for
// them.
func (c *client) cpuTime() (float64, error) {
	sum := softirqTime(c.cpu)
	for _, cmd := range []*exec.Cmd{c.drive, c.serve} {
		t, err := cpuTime(cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

func (c *client) close() {
	for _, cmd := range []*exec.Cmd{c.drive, c.serve} {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // its end is wanted, however it says that it came
	}
}
