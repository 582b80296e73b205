package ipam

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// journal is the allocator's state on disk: memory is what counts while the
// process lives, the journal is what the next process starts from.
//
// Commits are not synced. When the process dies, what it wrote is in the page
// cache and nothing is lost. When the machine dies, the pods died with it, and
// Reconcile with a kernel that has no pod interfaces frees everything; the
// blocks, which outlive a reboot, are synced, and confirmed in the store after
// each boot. A sync per pod would cost some milliseconds and protect nothing.
type journal struct {
	path string
	db   *bbolt.DB
}

// ledger is what an Allocator needs of its journal.
type ledger interface {
	apply(change) error
	try() error
	close() error
}

// contents is everything that stands in a journal.
type contents struct {
	format      string
	boot        string // the boot during which it was written
	blocks      []netip.Prefix
	allocations []Allocation
	freed       []freed // oldest first
}

// freed is an address that was given back. Numbers grow with time.
type freed struct {
	number  uint64
	address netip.Addr
}

// change is one transaction.
type change struct {
	put       []Allocation
	drop      []ID
	freed     []freed
	unfreed   []uint64
	newBlocks []netip.Prefix
	oldBlocks []netip.Prefix
}

var (
	bucketMeta        = []byte("meta")
	bucketBlocks      = []byte("blocks")
	bucketAllocations = []byte("allocations")
	bucketFreed       = []byte("freed")
	buckets           = [][]byte{bucketMeta, bucketBlocks, bucketAllocations, bucketFreed}

	keyFormat = []byte("format")
	keyBoot   = []byte("boot")
	keyTrial  = []byte("trial")

	format = []byte("1")
)

// errCorrupt is for journals that can't be trusted.
var errCorrupt = errors.New("journal is corrupt")

// lockTimeout is how long to wait for a previous process that still holds the
// journal.
const lockTimeout = 2 * time.Second

// maxJournal is more than a journal with all the pods that a node can have.
const maxJournal = 1 << 30

// readJournal reads a whole journal, of which nothing is believed: its pages are
// read by readPages, and every record has a checksum.
func readJournal(path string) (c contents, err error) {
	data, err := readLocked(path)
	if err != nil {
		return c, err
	}
	found := map[string]bool{}
	err = readPages(data, func(bucket string) func(key, sealed []byte) error {
		found[bucket] = true
		return func(key, sealed []byte) error {
			value, err := unseal(key, sealed)
			if err != nil {
				return fmt.Errorf("bucket %s: %w", bucket, err)
			}
			return c.add(bucket, key, value)
		}
	})
	for _, name := range buckets {
		if err == nil && !found[string(name)] {
			err = fmt.Errorf("no bucket %s", name)
		}
	}
	if err == nil {
		err = c.check()
	}
	if err != nil {
		return contents{}, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return c, nil
}

// readLocked reads the file when no other process has it as its journal.
func readLocked(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("open journal: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("journal %s is no file: remove it, or say with --state-dir where the journal is to be", path)
	case info.Size() > maxJournal:
		return nil, fmt.Errorf("%w: it has %d bytes, more than a journal can have", errCorrupt, info.Size())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	defer f.Close()
	deadline := time.Now().Add(lockTimeout)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock journal %s: %w", path, err)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("journal %s is in use by another process: stop the other agent", path)
		}
		time.Sleep(lockTimeout / 40)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return data, nil
}

func (c *contents) add(bucket string, k, value []byte) error {
	switch bucket {
	case string(bucketMeta):
		switch {
		case string(k) == string(keyBoot):
			c.boot = string(value)
		case string(k) == string(keyFormat):
			c.format = string(value)
		}
	case string(bucketBlocks):
		block, err := netip.ParsePrefix(string(k))
		if err != nil {
			return err
		}
		if block.Masked().String() != string(k) {
			return fmt.Errorf("%q is no block", k)
		}
		c.blocks = append(c.blocks, block)
	case string(bucketAllocations):
		var a Allocation
		if err := json.Unmarshal(value, &a); err != nil {
			return err
		}
		if !bytes.Equal(a.ID.key(), k) {
			return fmt.Errorf("the allocation of %s has the key %q", a.ID, k)
		}
		c.allocations = append(c.allocations, a)
	case string(bucketFreed):
		addr, ok := netip.AddrFromSlice(value)
		if !ok || len(k) != 8 {
			return errors.New("a freed address has the wrong length")
		}
		c.freed = append(c.freed, freed{binary.BigEndian.Uint64(k), addr})
	default:
		return fmt.Errorf("bucket %q is not known", bucket)
	}
	return nil
}

// check refuses what no allocator has written: an address that two have, or
// that is free and used, or blocks that overlap.
func (c contents) check() error {
	if c.format != string(format) {
		return fmt.Errorf("format %q is not known", c.format)
	}
	seen := map[netip.Addr]bool{}
	add := func(a netip.Addr) error {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() || seen[a] {
			return fmt.Errorf("address %s is there twice, or none", a)
		}
		seen[a] = true
		return nil
	}
	for _, al := range c.allocations {
		for _, a := range al.Addresses {
			if err := add(a); err != nil {
				return err
			}
		}
	}
	for _, f := range c.freed {
		if err := add(f.address); err != nil {
			return err
		}
	}
	for i, b := range c.blocks {
		if j := slices.IndexFunc(c.blocks[:i], b.Overlaps); j >= 0 {
			return fmt.Errorf("blocks %s and %s overlap", c.blocks[j], b)
		}
	}
	return nil
}

// createJournal writes a new journal and puts it in the place of the old one.
// Every process starts with a fresh file: it is small, and damage that was not
// noticed when reading (in the list of free pages, say) is left behind.
func createJournal(path string, c contents) (*journal, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("create journal: %w", err)
	}
	db, err := bbolt.Open(fresh, 0o600, writing())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create journal: %w", err), os.RemoveAll(fresh))
	}
	j := &journal{path, db}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(
			meta.Put(keyFormat, seal(keyFormat, format)),
			meta.Put(keyBoot, seal(keyBoot, []byte(c.boot))),
			(change{put: c.allocations, freed: c.freed, newBlocks: c.blocks}).write(tx))
	})
	if err == nil {
		err = db.Sync()
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create journal: %w", err), db.Close(), os.RemoveAll(fresh))
	}
	return j, nil
}

func writing() *bbolt.Options {
	return &bbolt.Options{NoSync: true, NoFreelistSync: true, Timeout: lockTimeout}
}

// openJournal takes a journal that was read before into use as it is.
func openJournal(path string) (*journal, error) {
	db, err := bbolt.Open(path, 0o600, writing())
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return &journal{path, db}, nil
}

// apply makes one change, all of it or nothing. Changes of blocks are synced.
func (j *journal) apply(c change) error {
	if err := j.db.Update(c.write); err != nil {
		return j.failed(err)
	}
	if len(c.newBlocks)+len(c.oldBlocks) > 0 {
		if err := j.db.Sync(); err != nil {
			return j.failed(err)
		}
	}
	return nil
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

// trial is larger than what the journal keeps of a pod.
const trial = 16 << 10

// try writes something and removes it.
func (j *journal) try() error {
	err := j.db.Update(func(tx *bbolt.Tx) error { return put(tx.Bucket(bucketMeta), keyTrial, make([]byte, trial)) })
	if err == nil {
		err = j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Delete(keyTrial) })
	}
	if err != nil {
		return j.failed(err)
	}
	return nil
}

func (c change) write(tx *bbolt.Tx) error {
	allocations, blocks, free := tx.Bucket(bucketAllocations), tx.Bucket(bucketBlocks), tx.Bucket(bucketFreed)
	for _, a := range c.put {
		value, err := json.Marshal(a)
		if err != nil {
			return err
		}
		if err := put(allocations, a.ID.key(), value); err != nil {
			return err
		}
	}
	for _, id := range c.drop {
		if err := allocations.Delete(id.key()); err != nil {
			return err
		}
	}
	for _, f := range c.freed {
		if err := put(free, binary.BigEndian.AppendUint64(nil, f.number), f.address.AsSlice()); err != nil {
			return err
		}
	}
	for _, n := range c.unfreed {
		if err := free.Delete(binary.BigEndian.AppendUint64(nil, n)); err != nil {
			return err
		}
	}
	for _, b := range c.newBlocks {
		if err := put(blocks, []byte(b.String()), nil); err != nil {
			return err
		}
	}
	for _, b := range c.oldBlocks {
		if err := blocks.Delete([]byte(b.String())); err != nil {
			return err
		}
	}
	return nil
}

func (j *journal) close() error { return j.db.Close() }

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

func put(b *bbolt.Bucket, key, value []byte) error { return b.Put(key, seal(key, value)) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func seal(key, value []byte) []byte {
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(value)), sum), value...)
}

func unseal(key, sealed []byte) ([]byte, error) {
	if len(sealed) < 4 {
		return nil, errors.New("a record is too short")
	}
	value := sealed[4:]
	if crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value) != binary.BigEndian.Uint32(sealed) {
		return nil, errors.New("a record's checksum is wrong")
	}
	return value, nil
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
