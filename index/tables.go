package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"
	"sync"

	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// tableBytes is about how large one table gets. While it is written it is in
// memory about three times.
const tableBytes = 4 << 20

// maxKey is the longest key in bytes.
const maxKey = chunk.Size

func tableOptions() table.Options {
	return table.Options{
		TableSize: tableBytes, BlockSize: 4096, BloomFalsePositive: 0.005,
		Compression: options.None, ChkMode: options.OnBlockRead, ReadOnly: true,
	}
}

// appendKey appends key as badger wants it: with the suffix of version 1.
func appendKey(dst, key []byte) []byte {
	return binary.BigEndian.AppendUint64(append(dst, key...), math.MaxUint64-1)
}

// guard turns a panic of badger's, which it uses where a table is not what it
// expects, and a fault in a mapping, which a file that was truncated or a disk
// that does not answer cause, into an error.
//
//	defer guard(&err, debug.SetPanicOnFault(true))
func guard(err *error, panicOnFault bool) {
	debug.SetPanicOnFault(panicOnFault)
	if r := recover(); r != nil {
		*err = fmt.Errorf("%.200v: %w", r, chunk.ErrCorrupt)
	}
}

// tables is a sequence of sorted, disjoint, mapped tables. It is safe for
// concurrent use.
type tables struct{ all []*mapped }

type mapped struct {
	t     *table.Table
	data  []byte
	first []byte    // its smallest key
	last  []byte    // its greatest key
	seeks sync.Pool // *seeker
}

// seeker is a position in a table, with room for the key to look for.
type seeker struct {
	it  *table.Iterator
	key [maxKey + 8]byte
}

func tableName(prefix string, i int) string { return fmt.Sprintf("%s%06d.sst", prefix, i+1) }

// openTables maps the tables that metas describe. Tables that are not what
// they should be are chunk.ErrCorrupt.
func openTables(dir, prefix string, metas []tableMeta) (*tables, error) {
	ts := &tables{}
	for i, m := range metas {
		path := filepath.Join(dir, tableName(prefix, i))
		t, err := openTable(path, i, m)
		if err != nil {
			ts.close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		ts.all = append(ts.all, t)
	}
	for i := 1; i < len(ts.all); i++ {
		if bytes.Compare(ts.all[i-1].last, ts.all[i].first) >= 0 {
			ts.close()
			return nil, fmt.Errorf("%s: tables out of order: %w", dir, chunk.ErrCorrupt)
		}
	}
	return ts, nil
}

func openTable(path string, i int, m tableMeta) (_ *mapped, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() != m.size {
		return nil, fmt.Errorf("has %d bytes instead of %d: %w", fi.Size(), m.size, chunk.ErrCorrupt)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(m.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", m.size, err)
	}
	defer func() {
		if err != nil {
			unix.Munmap(data)
		}
	}()
	defer guard(&err, debug.SetPanicOnFault(true))
	// Badger ends the process if the lengths in here do not fit. All else of a
	// table has a checksum that leads to an error or, at worst, to a panic.
	if !bytes.Equal(data[len(data)-tailSize:], m.tail) {
		return nil, fmt.Errorf("its end is not what was written: %w", chunk.ErrCorrupt)
	}
	opt := tableOptions()
	t, err := table.OpenInMemoryTable(data, uint64(i), &opt)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", err, chunk.ErrCorrupt)
	}
	x := &mapped{t: t, data: data, first: y.ParseKey(t.Smallest()), last: y.ParseKey(t.Biggest())}
	x.seeks.New = func() any { return &seeker{it: t.NewIterator(table.NOCACHE)} }
	return x, nil
}

// close unmaps the tables. Nobody may use them any more.
func (ts *tables) close() {
	for _, t := range ts.all {
		unix.Munmap(t.data)
	}
	ts.all = nil
}

// get calls f with the value of key, if there is one. The value is only valid
// during the call.
func (ts *tables) get(key []byte, f func(value []byte)) (err error) {
	i := sort.Search(len(ts.all), func(i int) bool { return bytes.Compare(ts.all[i].first, key) > 0 })
	if i == 0 {
		return nil
	}
	t := ts.all[i-1]
	if bytes.Compare(key, t.last) > 0 {
		return nil
	}
	defer guard(&err, debug.SetPanicOnFault(true))
	if t.t.DoesNotHave(y.Hash(key)) {
		return nil
	}
	s := t.seeks.Get().(*seeker)
	k := appendKey(s.key[:0], key)
	s.it.Seek(k)
	// The iterator hides its error. But the table has a key that is not less
	// than this one, so finding none means that a block could not be read.
	if !s.it.Valid() {
		return errBlock
	}
	if bytes.Equal(s.it.Key(), k) {
		f(s.it.Value().Value)
	}
	t.seeks.Put(s) // not after a panic
	return nil
}

var errBlock = fmt.Errorf("a block of a table is unreadable: %w", chunk.ErrCorrupt)

// cursor walks through all keys in order. It is for one goroutine.
type cursor struct {
	ts    *tables
	table int
	it    *table.Iterator
	key   []byte
	value []byte
	err   error
}

// scan returns a cursor in front of the first key.
func (ts *tables) scan() *cursor { return &cursor{ts: ts, table: -1} }

// next goes to the next key and reports whether there is one; if not, err says
// why. key and value are valid until the next call.
func (c *cursor) next() bool {
	defer guard(&c.err, debug.SetPanicOnFault(true))
	for c.err == nil {
		if c.it == nil {
			if c.table++; c.table >= len(c.ts.all) {
				return false
			}
			c.it = c.ts.all[c.table].t.NewIterator(table.NOCACHE)
			c.it.Rewind()
		} else {
			c.it.Next()
		}
		if c.it.Valid() {
			c.key, c.value = y.ParseKey(c.it.Key()), c.it.Value().Value
			return true
		}
		if !bytes.Equal(c.key, c.ts.all[c.table].last) {
			c.err = errBlock // the iterator hides its own
		}
		c.it = nil
	}
	return false
}

// tableWriter writes sorted keys into new tables. It is for one goroutine.
type tableWriter struct {
	dir, prefix string
	room        *int64 // bytes that may still be written
	b           *table.Builder
	key, buf    []byte
	written     []tableMeta
}

// add appends a key, which is greater than all before.
func (w *tableWriter) add(key, value []byte) error {
	if w.b != nil && w.b.ReachedCapacity() {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if w.b == nil {
		w.b = table.NewTableBuilder(tableOptions())
	}
	w.key = appendKey(w.key[:0], key)
	w.b.Add(w.key, y.ValueStruct{Value: value}, 0)
	return nil
}

// flush writes what was added since the last one as a table, durably.
func (w *tableWriter) flush() error {
	if w.b == nil {
		return nil
	}
	done := w.b.Done()
	w.buf = slices.Grow(w.buf[:0], done.Size)[:done.Size]
	p := w.buf[:done.Copy(w.buf)]
	w.b.Close()
	w.b = nil
	if *w.room -= int64(len(p)); *w.room < 0 {
		return errNoRoom
	}
	if err := writeFile(filepath.Join(w.dir, tableName(w.prefix, len(w.written))), p); err != nil {
		return err
	}
	w.written = append(w.written, tableMeta{size: int64(len(p)), tail: bytes.Clone(p[len(p)-tailSize:])})
	return nil
}

// abandon frees what a writer holds that is not used to its end.
func (w *tableWriter) abandon() {
	if w.b != nil {
		w.b.Close()
		w.b = nil
	}
}

// writeFile creates a file and makes it durable.
func writeFile(path string, p []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}
