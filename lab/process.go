package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twill-net/twill/lab/space"
)

// process is a program that the supervisor starts in a space, and can start
// again after it ended. Nothing is started again by itself: a crash is to be
// seen.
type process struct {
	name  string
	argv  []string
	env   []string
	space *space.Space
	log   string // path; output is appended

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
	how   error         // how it ended; valid once ended is closed
}

// ProcessStatus is what is known of a process.
type ProcessStatus struct {
	Running bool   `json:"running"`
	PID     int    `json:"pid,omitempty"`
	Ended   string `json:"ended,omitempty"` // how, for people
	Code    int    `json:"code,omitempty"`  // exit code; -1: by a signal
}

// start starts the program; files become its descriptors 3 and up.
func (p *process) start(files ...*os.File) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return fmt.Errorf("%s runs already (pid %d)", p.name, p.cmd.Process.Pid)
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Env = p.env
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = files
	// A session of its own, so that the terminal's Ctrl-C does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.space.Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		how := cmd.Wait()
		p.mu.Lock()
		p.how = how
		p.mu.Unlock()
		close(ended)
	}()
	return nil
}

// running is called with the lock held.
func (p *process) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// end sends a signal and waits until the process has ended.
func (p *process) end(signal syscall.Signal, patience time.Duration) error {
	p.mu.Lock()
	cmd, ended, running := p.cmd, p.ended, p.running()
	p.mu.Unlock()
	if !running {
		return fmt.Errorf("%s does not run", p.name)
	}
	if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s: %w", signal, p.name, err)
	}
	select {
	case <-ended:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s (pid %d) still runs %s after %s", p.name, cmd.Process.Pid, patience, signal)
	}
}

func (p *process) status() ProcessStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.cmd == nil:
		return ProcessStatus{}
	case p.running():
		return ProcessStatus{Running: true, PID: p.cmd.Process.Pid}
	}
	s := ProcessStatus{Ended: "exit status 0", Code: p.cmd.ProcessState.ExitCode()}
	if p.how != nil {
		s.Ended = p.how.Error()
	}
	return s
}

// await polls until ready says so, and fails early when the process ends.
func (p *process) await(ready func() bool, patience time.Duration) error {
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	deadline := time.After(patience)
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for !ready() {
		select {
		case <-ended:
			return fmt.Errorf("%s ended: %s%s", p.name, p.status().Ended, tail(p.log))
		case <-deadline:
			return fmt.Errorf("%s is not ready after %s%s", p.name, patience, tail(p.log))
		case <-poll.C:
		}
	}
	return nil
}

const tailLines = 8

// tail returns the last lines of a log, for the end of an error.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 8192 {
		_, _ = f.Seek(-8192, io.SeekEnd)
	}
	text, _ := io.ReadAll(f)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	if lines[0] == "" {
		return ""
	}
	return "; its log ends with\n  " + strings.Join(lines, "\n  ")
}
