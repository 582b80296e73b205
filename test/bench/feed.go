package main

import (
	"bufio"
	"encoding/gob"
	"errors"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twill-net/twill/agent"
	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// feeder gives a planner objects as a store gives them to an agent, and keeps
// the time that decoding and taking in need. What the feeder itself does to make
// the stored form is not counted.
type feeder struct {
	node         *node
	decode, plan time.Duration
	rulesOnly    bool // the plan has pods without devices
	writes       int  // of rules, by the last flush
}

// objects calls f for each object of a cluster.
type objects func(f func(api.Object) error) error

// sync gives the node all objects as an agent gets them at its start: each kind
// is decoded by a goroutine of its own, which hands over to the one that plans.
// Then what is planned is written.
func (f *feeder) sync(all objects) (took, kernel time.Duration, err error) {
	dir, err := os.MkdirTemp("", "twill-bench-feed-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	stored, err := storeIn(dir, all)
	defer stored.close()
	if err != nil {
		return 0, 0, err
	}
	debug.FreeOSMemory() // what was needed to make the stored form is not the agent's
	start := time.Now()
	if err := f.take(stored); err != nil {
		return 0, 0, err
	}
	kernel, err = f.flush()
	took = time.Since(start)
	agent.AfterFirstSync()
	return took, kernel, err
}

func (f *feeder) take(stored *storedObjects) error {
	work := make(chan api.Object, agent.WorkAtOnce)
	var wait sync.WaitGroup
	var decode atomic.Int64
	errs := make([]error, len(stored.kinds))
	for i, kind := range stored.kinds {
		wait.Go(func() { errs[i] = stored.files[kind].decode(kind, work, &decode) })
	}
	go func() { wait.Wait(); close(work) }()
	for o := range work {
		start := time.Now()
		f.node.planner.Put(o)
		f.plan += time.Since(start)
	}
	f.decode += time.Duration(decode.Load())
	return errors.Join(errs...)
}

// storedObject is an object in the form in which a store keeps it.
type storedObject struct {
	Key   api.Key
	Value []byte
}

// storedObjects are objects in files, one for each kind: in memory they would
// count as the agent's.
type storedObjects struct {
	kinds []*api.Kind // in the order in which they came
	files map[*api.Kind]*storedFile
}

type storedFile struct {
	*os.File
	buffer *bufio.Writer
	*gob.Encoder
}

func storeIn(dir string, all objects) (*storedObjects, error) {
	s := &storedObjects{files: map[*api.Kind]*storedFile{}}
	err := all(func(o api.Object) error {
		kind := api.KindOf(o)
		if s.files[kind] == nil {
			file, err := os.CreateTemp(dir, kind.Plural)
			if err != nil {
				return err
			}
			w := bufio.NewWriter(file)
			s.files[kind] = &storedFile{file, w, gob.NewEncoder(w)}
			s.kinds = append(s.kinds, kind)
		}
		value, err := store.EncodeNew(kind, o, time.Unix(0, 0))
		if err != nil {
			return err
		}
		return s.files[kind].Encode(storedObject{api.KeyOf(o), value})
	})
	for _, file := range s.files {
		err = errors.Join(err, file.buffer.Flush())
		_, seekErr := file.Seek(0, io.SeekStart)
		err = errors.Join(err, seekErr)
	}
	return s, err
}

func (s *storedObjects) close() {
	for _, file := range s.files {
		file.Close()
	}
}

// pageSize is how many objects a store gives at once.
const pageSize = 1000

// pages reads what is in the file.
func (s *storedFile) pages(out chan<- []storedObject) error {
	defer close(out)
	in := gob.NewDecoder(bufio.NewReader(s.File))
	for {
		var page []storedObject
		for len(page) < pageSize {
			var o storedObject
			if err := in.Decode(&o); errors.Is(err, io.EOF) {
				out <- page
				return nil
			} else if err != nil {
				return err
			}
			page = append(page, o)
		}
		out <- page
	}
}

// decode sends what is in the file to work, as an agent's store does it: each page
// on all processors, while the next is read. It adds to took how long decoding alone
// needed.
func (s *storedFile) decode(kind *api.Kind, work chan<- api.Object, took *atomic.Int64) error {
	pages, read := make(chan []storedObject, 1), make(chan error, 1)
	go func() { read <- s.pages(pages) }()
	for page := range pages {
		objects, errs := make([]api.Object, len(page)), make([]error, len(page))
		store.Spread(len(page), func(i int) {
			start := time.Now()
			objects[i], errs[i] = store.Decode(kind, page[i].Key, page[i].Value, "1")
			took.Add(int64(time.Since(start)))
		})
		if err := errors.Join(errs...); err != nil {
			return err
		}
		for _, o := range objects {
			work <- o
		}
	}
	return <-read
}

// put gives the node one object.
func (f *feeder) put(o api.Object) error {
	kind, key := api.KindOf(o), api.KeyOf(o)
	stored, err := store.EncodeNew(kind, o, time.Unix(0, 0))
	if err != nil {
		return err
	}
	start := time.Now()
	decoded, err := store.Decode(kind, key, stored, "1")
	if err != nil {
		return err
	}
	middle := time.Now()
	f.node.planner.Put(decoded)
	f.decode += middle.Sub(start)
	f.plan += time.Since(middle)
	return nil
}

// flush plans what is left to be planned, and writes it.
func (f *feeder) flush() (kernel time.Duration, err error) {
	start := time.Now()
	f.node.planner.Flush()
	f.plan += time.Since(start)
	start = time.Now()
	if f.rulesOnly {
		f.writes, err = f.node.applyRules()
	} else {
		err = f.node.apply()
	}
	return time.Since(start), err
}

// cold does a first sync and keeps its figures.
func (f *feeder) cold(all objects, found figures, total string) error {
	took, kernel, err := f.sync(all)
	if err != nil {
		return err
	}
	found[total] = took.Seconds()
	found["decode"], found["plan"], found["kernel"] = f.decode.Seconds(), f.plan.Seconds(), kernel.Seconds()
	found["rss"], found["peak"] = memory("VmRSS"), memory("VmHWM")
	return nil
}

// changes times n changes, each from the stored form of an object to the kernel,
// in ms.
func (f *feeder) changes(n int, change func(i int) api.Object) ([]float64, error) {
	var all []float64
	for i := range n {
		f.decode, f.plan = 0, 0
		if err := f.put(change(i)); err != nil {
			return nil, err
		}
		kernel, err := f.flush()
		if err != nil {
			return nil, err
		}
		all = append(all, milliseconds(f.decode+f.plan+kernel))
	}
	return all, nil
}
