package ipam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
)

// The parts of bbolt's file format that its reading needs. A file is pages:
// two of meta data, of which the newer counts, and trees of branches and leaves,
// one a bucket; a bucket may be so small that its leaf is a value in the leaf
// above it.
const (
	formatMagic   = 0xed0cdaed
	formatVersion = 2

	pageHeader   = 16 // id, flags, count, overflow
	elementSize  = 16
	bucketHeader = 16 // root page, sequence
	metaSize     = 64

	pageBranch = 1
	pageLeaf   = 2
	pageMeta   = 4

	elementBucket = 1 // the value is a bucket

	minPageSize = 512
	maxPageSize = 64 << 10
	maxDepth    = 16 // of a tree; a branch has at least two children
)

// pages are the bytes of a file that should be bbolt's. bbolt itself trusts what
// it reads: a damaged length makes it ask for all memory, a damaged page number
// lets it go round in circles, and neither can be caught.
type pages struct {
	data []byte
	size uint64 // of a page
	seen map[uint64]bool
}

// readPages calls open with the name of every bucket, and what that returns with
// every key and value in it.
func readPages(data []byte, open func(bucket string) func(key, value []byte) error) error {
	p := &pages{data: data, seen: map[uint64]bool{}}
	root, err := p.root()
	if err != nil {
		return err
	}
	return p.tree(root, maxDepth, func(flags uint32, name, value []byte) error {
		if flags != elementBucket {
			return fmt.Errorf("%q is no bucket", name)
		}
		each := open(string(name))
		return p.bucket(value, func(flags uint32, key, value []byte) error {
			if flags != 0 {
				return fmt.Errorf("bucket %q has a bucket in it", name)
			}
			return each(key, value)
		})
	})
}

// root is the page of the tree of buckets, by the newer of the two metas that
// are whole. If the first is damaged, the page size has to be guessed.
func (p *pages) root() (uint64, error) {
	root, newest, found := uint64(0), uint64(0), false
	try := func(at uint64) bool {
		m, ok := p.meta(at)
		if ok && (!found || m.transaction > newest) {
			root, newest, p.size, found = m.root, m.transaction, m.pageSize, true
		}
		return ok
	}
	if try(0) {
		try(p.size)
	}
	for size := uint64(minPageSize); !found && size <= maxPageSize; size *= 2 {
		try(size)
	}
	if !found {
		return 0, errors.New("it does not begin as a journal does")
	}
	return root, nil
}

type meta struct{ root, transaction, pageSize uint64 }

func (p *pages) meta(at uint64) (m meta, ok bool) {
	if at+pageHeader+metaSize > uint64(len(p.data)) {
		return m, false
	}
	page := p.data[at:]
	b := page[pageHeader : pageHeader+metaSize]
	h := fnv.New64a()
	h.Write(b[:metaSize-8])
	m = meta{root: u64(b[16:]), transaction: u64(b[48:]), pageSize: uint64(u32(b[8:]))}
	ok = u16(page[8:]) == pageMeta && u32(b) == formatMagic && u32(b[4:]) == formatVersion && u64(b[56:]) == h.Sum64() &&
		m.pageSize >= minPageSize && m.pageSize <= maxPageSize && m.pageSize&(m.pageSize-1) == 0 && (at == 0 || at == m.pageSize)
	return m, ok
}

func (p *pages) bucket(value []byte, each func(flags uint32, key, value []byte) error) error {
	if len(value) < bucketHeader {
		return errors.New("a bucket is cut short")
	}
	if root := u64(value); root != 0 {
		return p.tree(root, maxDepth, each)
	}
	return p.elements(value[bucketHeader:], 0, each)
}

// tree reads a page and all below it.
func (p *pages) tree(id uint64, depth int, each func(flags uint32, key, value []byte) error) error {
	pages := uint64(len(p.data)) / p.size
	if id >= pages || p.seen[id] || depth == 0 {
		return fmt.Errorf("page %d is not there, or twice", id)
	}
	p.seen[id] = true
	page := p.data[id*p.size:]
	span := (1 + uint64(u32(page[12:]))) * p.size
	if span > uint64(len(page)) {
		return fmt.Errorf("page %d is cut short", id)
	}
	return p.elements(page[:span], depth, each)
}

// elements reads one page; depth is 0 for one that can't have pages below it.
func (p *pages) elements(page []byte, depth int, each func(flags uint32, key, value []byte) error) error {
	if len(page) < pageHeader {
		return errors.New("a page is cut short")
	}
	kind, count := u16(page[8:]), int(u16(page[10:]))
	if kind != pageLeaf && (kind != pageBranch || depth == 0) {
		return fmt.Errorf("a page is of kind %#x", kind)
	}
	var before []byte
	for i := range count {
		at := pageHeader + i*elementSize
		if at+elementSize > len(page) {
			return errors.New("a page has more elements than room")
		}
		e := page[at:]
		if kind == pageBranch {
			if err := p.tree(u64(e[8:]), depth-1, each); err != nil {
				return err
			}
			continue
		}
		start, keySize, valueSize := uint64(u32(e[4:])), uint64(u32(e[8:])), uint64(u32(e[12:]))
		if start+keySize+valueSize > uint64(len(e)) {
			return errors.New("an element is longer than its page")
		}
		key, value := e[start:start+keySize], e[start+keySize:start+keySize+valueSize]
		if i > 0 && bytes.Compare(before, key) >= 0 {
			return errors.New("keys are not in order")
		}
		before = key
		if err := each(u32(e), key, value); err != nil {
			return err
		}
	}
	return nil
}

// Numbers are in the order of the machine that wrote the file.
func u16(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }
func u32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func u64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
