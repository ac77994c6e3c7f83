package repo

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// LocalPagesWriter keeps the pages of a snapshot that is being made. It holds one
// block of pages, and some 50 bytes for each page, in memory. It is for one
// goroutine at a time. Commit or Abort must be called, once.
type LocalPagesWriter struct {
	file   string
	limit  int64
	f      *os.File
	w      *bufio.Writer
	off    int64
	key    *seal.FrameKey
	rows   []byte
	places map[keptPage]keptPlace
	open   [][]byte
	size   int
	packed []byte
	err    error
}

// NewLocalPages begins to keep pages; nil without an error means that this node
// keeps no local state.
func (r *Repo) NewLocalPages(name string, paths []Path) (*LocalPagesWriter, error) {
	file, err := r.pagesFile(name, paths)
	if err != nil || file == "" {
		return nil, err
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	sweepPages(dir, r.opt.Now())
	f, err := os.CreateTemp(dir, pagesTemp)
	if err != nil {
		return nil, err
	}
	w, err := newPagesWriter(r.k, f, r.opt.Random)
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	w.file, w.limit = file, r.opt.CacheLimit
	return w, nil
}

// sweepPages removes what killed runs have left.
func sweepPages(dir string, now time.Time) {
	all, _ := os.ReadDir(dir)
	for _, e := range all {
		if fi, err := e.Info(); err == nil && strings.HasPrefix(e.Name(), pagesTemp) && now.Sub(fi.ModTime()) > 7*24*time.Hour {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func newPagesWriter(k *seal.Keys, f *os.File, random io.Reader) (*LocalPagesWriter, error) {
	salt := make([]byte, 16)
	if _, err := io.ReadFull(random, salt); err != nil {
		return nil, fmt.Errorf("random salt: %w", err)
	}
	key, err := k.LocalKey(pagesUse, salt)
	if err != nil {
		return nil, err
	}
	w := &LocalPagesWriter{f: f, w: bufio.NewWriterSize(f, 1<<18), key: seal.NewFrameKey(key, salt), places: map[keptPage]keptPlace{}}
	w.write([]byte(pagesHead))
	w.write(salt)
	return w, w.err
}

func (w *LocalPagesWriter) write(p []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(p)
		w.off += int64(len(p))
	}
	if w.err == nil && w.limit > 0 && w.off > w.limit {
		w.err = fmt.Errorf("the pages take more than %d bytes, the limit of local state", w.limit)
	}
}

// Add keeps a page. It keeps no reference to p. Trouble shows at Commit.
func (w *LocalPagesWriter) Add(id chunk.ID, p []byte) {
	key := keptPage(id[:16])
	if _, ok := w.places[key]; ok || w.err != nil {
		return
	}
	w.places[key] = keptPlace{uint32(len(w.rows) / pagesRow), uint16(len(w.open))}
	w.open = append(w.open, bytes.Clone(p))
	if w.size += len(p); w.size >= pagesBlock || len(w.open) == maxBlockPages {
		w.flush(0)
	}
}

// flush writes the open block.
func (w *LocalPagesWriter) flush(kind byte) {
	if len(w.open) == 0 {
		return
	}
	off := w.off
	n := w.block()
	w.rows = binary.LittleEndian.AppendUint64(w.rows, uint64(off))
	w.rows = binary.LittleEndian.AppendUint32(w.rows, n)
	w.rows = append(w.rows, kind)
}

// block seals what is open, and returns its stored length.
func (w *LocalPagesWriter) block() uint32 {
	plain := seal.AppendFrame(nil, w.open)
	w.packed = seal.Pack(w.packed, plain, seal.Fastest)
	stored := w.key.Seal(nil, uint32(len(w.rows)/pagesRow), w.packed)
	w.write(stored)
	w.open, w.size = nil, 0
	return uint32(len(stored))
}

// Commit makes the pages those of the last snapshot.
func (w *LocalPagesWriter) Commit(s *Snapshot) error {
	err := w.finish(s)
	if err == nil {
		err = w.f.Sync()
	}
	if err = errors.Join(err, w.f.Close()); err == nil {
		err = os.Rename(w.f.Name(), w.file)
	}
	if err != nil {
		return fmt.Errorf("keep the pages of this snapshot: %w", errors.Join(err, os.Remove(w.f.Name())))
	}
	return nil
}

// finish writes what stands behind the pages.
func (w *LocalPagesWriter) finish(s *Snapshot) error {
	w.flush(0)
	keys := make([]keptPage, 0, len(w.places))
	for key := range w.places {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b keptPage) int {
		return cmp.Or(cmp.Compare(binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(b[:])), cmp.Compare(binary.BigEndian.Uint64(a[8:]), binary.BigEndian.Uint64(b[8:])))
	})
	for part := range slices.Chunk(keys, entriesBlock) {
		var list []byte
		for _, key := range part {
			at := w.places[key]
			list = append(list, key[:]...)
			list = binary.LittleEndian.AppendUint32(list, at.block)
			list = binary.LittleEndian.AppendUint16(list, at.at)
		}
		w.open = [][]byte{list}
		w.flush(1)
	}
	rec, err := json.Marshal(&Snapshot{V: 1, ID: s.ID, Name: s.Name, Paths: s.Paths, Time: s.Time, Tree: s.Tree, Witness: s.Witness})
	if err != nil {
		return err
	}
	number := uint32(len(w.rows) / pagesRow)
	w.open = [][]byte{rec, w.rows}
	var tail [pagesTail]byte
	binary.LittleEndian.PutUint32(tail[:], w.block())
	binary.LittleEndian.PutUint32(tail[4:], number)
	w.write(tail[:])
	if w.err == nil {
		w.err = w.w.Flush()
	}
	return w.err
}

// Abort forgets what was added.
func (w *LocalPagesWriter) Abort() error { return errors.Join(w.f.Close(), os.Remove(w.f.Name())) }
