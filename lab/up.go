package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUp is returned when a lab of that name is up already.
var ErrUp = errors.New("is up already")

// Up makes a lab and returns when it is ready. progress gets each step as it
// begins. After an error, or when ctx ends before the lab is ready, nothing is
// left of it.
func Up(ctx context.Context, cfg Config, progress func(step string)) error {
	if os.Geteuid() != 0 {
		return errors.New("a lab is made of namespaces, which only root can make: use sudo")
	}
	if err := cfg.complete(); err != nil {
		return err
	}
	lock, err := claim(cfg.Name)
	if err != nil {
		return err
	}
	defer lock.Close() // the supervisor has inherited it
	err = startSupervisor(ctx, cfg, lock, progress)
	if err != nil {
		return errors.Join(err, clear(cfg.Name))
	}
	return nil
}

// claim makes the lab's directory and locks it. The lock is held by whoever
// inherits the file, so it tells whether the lab is alive, even after a crash:
// then what that left is cleared away.
func claim(name string) (*os.File, error) {
	for {
		if err := os.MkdirAll(filepath.Join(dir(name), "logs"), 0o755); err != nil {
			return nil, fmt.Errorf("make the lab's directory: %w", err)
		}
		lock, err := os.Open(dir(name))
		if err != nil {
			return nil, fmt.Errorf("lock the lab's directory: %w", err)
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			lock.Close()
			return nil, fmt.Errorf("lab %q %w: end it with \"twill lab down --name %s\", or give another --name", name, ErrUp, name)
		}
		// Between being opened and locked it may have been removed by Down.
		if !isAt(lock, dir(name)) {
			lock.Close()
			continue
		}
		if err := clearCrashed(name); err != nil {
			lock.Close()
			return nil, err
		}
		return lock, nil
	}
}

func isAt(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// clearCrashed ends what a supervisor that is gone has left running and empties
// the directory, which stays locked.
func clearCrashed(name string) error {
	if err := killAll(name, killPatience); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir(name))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir(name), e.Name())); err != nil {
			return err
		}
	}
	return os.Mkdir(filepath.Join(dir(name), "logs"), 0o755)
}

func startSupervisor(ctx context.Context, cfg Config, lock *os.File, progress func(string)) error {
	if err := cfg.save(); err != nil {
		return err
	}
	log, err := os.Create(LogPath(cfg.Name, "supervisor"))
	if err != nil {
		return err
	}
	defer log.Close()
	told, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer told.Close()
	cmd := exec.Command(filepath.Join(cfg.Executables, labExecutable), "supervise", cfg.Name)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{tell, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return fmt.Errorf("start the lab's supervisor: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })()
	lines := bufio.NewScanner(told)
	for lines.Scan() {
		if lines.Text() == "ready" && ctx.Err() == nil {
			return cmd.Process.Release()
		}
		progress(lines.Text())
	}
	_ = cmd.Wait() // why it ended is in its log
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted before lab %q was up: %w", cfg.Name, ctx.Err())
	}
	return fmt.Errorf("lab %q did not come up%s", cfg.Name, tail(log.Name()))
}

// downPatience bounds the wait for the supervisor to end.
const downPatience = 15 * time.Second

// Down ends a lab and removes all that is left of it, also after a crash. It
// returns false when there was none.
func Down(name string) (found bool, err error) {
	if err := CheckName(name); err != nil {
		return false, err
	}
	lock, err := os.Open(dir(name))
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if err := endSupervisor(lock, name); err != nil {
		return true, err
	}
	return true, clear(name)
}

// endSupervisor waits for the supervisor to end and release the lock: first
// asking, in the end killing it.
func endSupervisor(lock *os.File, name string) error {
	began, sent := time.Now(), syscall.Signal(0)
	for unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		waited := time.Since(began)
		signal := syscall.SIGTERM
		if waited > downPatience/2 {
			signal = syscall.SIGKILL
		}
		if waited > downPatience {
			return fmt.Errorf("the supervisor of lab %q does not end", name)
		}
		// While the lab is being started there may be nobody yet to ask.
		if pid, err := supervisorPID(name); err == nil && sent != signal {
			sent = signal
			if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end the supervisor of lab %q: %w", name, err)
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

// supervisorPID asks the kernel who listens on the lab's socket, which can't be
// a process that happens to have got an old number.
func supervisorPID(name string) (int, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: socketPath(name)})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	if e := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return 0, e
	}
	if err != nil {
		return 0, err
	}
	return int(peer.Pid), nil
}

// clear ends what is left and removes the directory, which is locked.
func clear(name string) error {
	if err := killAll(name, killPatience); err != nil {
		return err
	}
	if err := os.RemoveAll(dir(name)); err != nil {
		return fmt.Errorf("remove the lab's directory: %w", err)
	}
	// It stays while other labs are in it.
	if err := os.Remove(root); err != nil && !os.IsNotExist(err) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("remove %s: %w", root, err)
	}
	return nil
}
