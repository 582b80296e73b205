package ipam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// journal is the allocator's state on disk: memory is what counts while the
// process lives, the journal is what the next process starts from. It is a log of
// lines: a snapshot, then a change each. A line is its checksum in eight
// hexadecimal digits, a space, and JSON.
//
// Changes of addresses are not synced. When the process dies, what it wrote is in
// the page cache and nothing is lost. When the machine dies, the pods died with
// it, and Reconcile with a kernel that has no pod interfaces frees everything; the
// blocks, which outlive a reboot, are synced, and confirmed in the store after
// each boot. A sync per pod would cost some milliseconds and protect nothing.
type journal struct {
	path  string
	file  *os.File
	now   contents // what the lines amount to
	size  int64    // of the lines; what is behind them was not written whole
	limit int64    // the size from which on a fresh journal is begun
}

// ledger is what an Allocator needs of its journal.
type ledger interface {
	apply(change) error
	try() error
	close() error
}

const (
	// growth is by how much a journal grows before a fresh one is begun: some
	// thousand pods that came and went.
	growth = 1 << 20
	// maxJournal is more than a node's journal ever has.
	maxJournal = 256 << 20
	// trial is more than what the journal keeps of a pod.
	trial = 16 << 10
	// lockTimeout is how long to wait for a previous process that still has the
	// journal.
	lockTimeout = 2 * time.Second
	lockRetry   = 20 * time.Millisecond
)

// errCorrupt is for journals that can't be trusted.
var errCorrupt = errors.New("journal is corrupt")

// lockJournal keeps other processes from a journal, until the file is closed.
func lockJournal(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock journal: %w", err)
	}
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockRetry) {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return lock, nil
		case errors.Is(err, unix.EWOULDBLOCK) && time.Now().After(deadline):
			err = fmt.Errorf("journal %s is in use by another process: stop the other agent", path)
		case errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR):
			continue
		default:
			err = fmt.Errorf("lock journal %s: %w", path, err)
		}
		return nil, errors.Join(err, lock.Close())
	}
}

// readJournal reads a whole journal, and says how long its lines are.
func readJournal(path, boot string) (c contents, size int64, err error) {
	text, err := readFile(path)
	if err != nil {
		return c, 0, err
	}
	return parseJournal(text, boot)
}

// parseJournal adds up a journal's lines.
//
// What follows the last line break is a change that was not written whole, and
// was never confirmed to anyone. After the machine died, any line since the last
// sync may be missing or broken: the lines before it count, being older than the
// pods' end.
func parseJournal(text []byte, boot string) (c contents, size int64, err error) {
	for {
		line, rest, whole := bytes.Cut(text[size:], []byte{'\n'})
		if !whole {
			break
		}
		err := c.addLine(line, size == 0)
		if err != nil && size > 0 && c.boot != boot {
			break
		}
		if err != nil {
			return contents{}, 0, fmt.Errorf("%w: after %d bytes: %w", errCorrupt, size, err)
		}
		size = int64(len(text) - len(rest))
	}
	if size == 0 {
		return c, 0, fmt.Errorf("%w: it has no line", errCorrupt)
	}
	return c, size, nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("open journal: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("journal %s is no file: remove it, or say with --state-dir where the journal is to be", path)
	case info.Size() > maxJournal:
		return nil, fmt.Errorf("%w: it has %d bytes", errCorrupt, info.Size())
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, syscall.EIO) {
		return nil, fmt.Errorf("%w: %w", errCorrupt, err)
	} else if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return text, nil
}

// addLine adds what a line tells; the first is a snapshot.
func (c *contents) addLine(line []byte, isFirst bool) (err error) {
	text, err := unseal(line)
	if err != nil {
		return err
	}
	if isFirst {
		var s snapshot
		if err := json.Unmarshal(text, &s); err != nil {
			return err
		}
		*c, err = s.load()
		return err
	}
	var ch change
	if err := json.Unmarshal(text, &ch); err != nil {
		return err
	}
	return c.apply(ch)
}

// createJournal writes a new journal and puts it in the place of the old one.
func createJournal(path string, c contents) (*journal, error) {
	line, err := seal(c.snapshot())
	if err != nil {
		return nil, fmt.Errorf("create journal: %w", err)
	}
	fresh := path + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return nil, fmt.Errorf("create journal: %w", err)
	}
	file, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create journal: %w", err)
	}
	if _, err = file.Write(line); err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create journal: %w", err), file.Close(), os.RemoveAll(fresh))
	}
	// Where the directory can't be synced a power failure may leave the old file,
	// whose pods are as dead and whose blocks the store confirms.
	_ = syncDir(filepath.Dir(path))
	size := int64(len(line))
	return &journal{path, file, c, size, 2*size + growth}, nil
}

// resumeJournal goes on with a journal that was read before.
func resumeJournal(path string, c contents, size int64) (*journal, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err := file.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal: %w", err), file.Close())
	}
	return &journal{path, file, c, size, 2*size + growth}, nil
}

// apply makes one change, all of it or nothing. Changes of blocks are synced.
func (j *journal) apply(c change) error {
	if err := j.now.check(c); err != nil {
		return fmt.Errorf("the change does not fit what is in the journal: %w", err)
	}
	if j.size > j.limit {
		j.beginAgain()
	}
	line, err := seal(c)
	if err != nil {
		return j.failed(err)
	}
	_, err = j.file.WriteAt(line, j.size)
	if err == nil && len(c.NewBlocks)+len(c.OldBlocks) > 0 {
		err = j.file.Sync()
	}
	if err != nil {
		// Where even this fails, what is left is no line, or the next change is
		// written over it.
		return j.failed(errors.Join(err, j.file.Truncate(j.size)))
	}
	j.size += int64(len(line))
	return j.now.apply(c)
}

// beginAgain replaces a journal that has grown long. Where that can't be done,
// the old one serves until it has grown as much again.
func (j *journal) beginAgain() {
	fresh, err := createJournal(j.path, j.now)
	if err != nil {
		j.limit = j.size + growth
		return
	}
	_ = j.file.Close()
	*j = *fresh
}

func (j *journal) failed(err error) error {
	var system *os.PathError
	if errors.As(err, &system) {
		err = system.Err // its path is that of the file when it was made
	}
	what := "look at the file system of"
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		what = "make room on the file system of"
	}
	return fmt.Errorf("%w: %w: %s %s", ErrJournal, err, what, j.path)
}

// try writes something behind the lines and removes it.
func (j *journal) try() error {
	_, err := j.file.WriteAt(make([]byte, trial), j.size)
	if err := errors.Join(err, j.file.Truncate(j.size)); err != nil {
		return j.failed(err)
	}
	return nil
}

func (j *journal) close() error { return j.file.Close() }

// moveAside renames a journal that can't be read, to path.corrupt-1 or the next
// number that is free.
func moveAside(path string) (string, error) {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.corrupt-%d", path, n)
		if _, err := os.Lstat(aside); err == nil {
			continue
		}
		if err := os.Rename(path, aside); err != nil {
			return "", fmt.Errorf("move the corrupt journal aside: %w", err)
		}
		return aside, nil
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal makes a line.
func seal(value any) ([]byte, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(text, castagnoli), text), nil
}

// unseal takes a line's text out.
func unseal(line []byte) ([]byte, error) {
	sum, text, ok := bytes.Cut(line, []byte{' '})
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if !ok || len(sum) != 8 || err != nil {
		return nil, errors.New("a line has no checksum")
	}
	if crc32.Checksum(text, castagnoli) != uint32(want) {
		return nil, errors.New("a line's checksum is wrong")
	}
	return text, nil
}

// bootID names the kernel's current boot; empty where it can't be read, which
// then is the same for every boot.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
