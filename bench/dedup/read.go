package dedup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	batchSize = 1 << 20 // bytes
	batches   = 4       // in memory: what a column may lag behind another
	maxLinks  = 1 << 20 // files with several names that are remembered
)

// A batch is what the reader hands to every column: pieces of one or many
// files. The last column that is done with it gives it back.
type batch struct {
	data  []byte
	parts []part
	users atomic.Int32
}

// part is data[from:to] of a batch, found at off in its file.
type part struct {
	from, to int
	off      int64
	first    bool // a stream begins: a file, or what follows a hole
}

// release gives b back to the reader once all columns did.
func (b *batch) release(free chan<- *batch) {
	if b.users.Add(-1) == 0 {
		free <- b
	}
}

// reader reads all files and hands them out.
type reader struct {
	ctx      context.Context
	report   *Report
	progress func(files, bytes int64, path string)
	free     chan *batch
	out      []chan *batch
	cur      *batch // being filled; nil if none
	links    map[[2]uint64]bool
}

// readAll returns an error only when ctx ends.
func (r *reader) readAll(files iter.Seq2[Source, error]) error {
	for src, err := range files {
		if err == nil {
			err = r.file(src)
		}
		if ctxErr := r.ctx.Err(); ctxErr != nil {
			return ctxErr
		}
		if err != nil {
			r.complain(err)
		}
	}
	r.flush("")
	return r.ctx.Err()
}

// complain reports something that cannot be read.
func (r *reader) complain(err error) {
	r.report.Unreadable++
	if len(r.report.Errors) < maxErrors {
		r.report.Errors = append(r.report.Errors, err.Error())
	}
}

func (r *reader) file(src Source) error {
	f, err := src.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	if file, ok := f.(*os.File); ok {
		err = r.sparse(file, src.Path)
	} else {
		_, err = r.stream(f, src.Path, 0)
	}
	if err == errLinked {
		r.report.HardLinks++
		return nil
	}
	if err == nil {
		r.report.Files++
	}
	return err
}

// errLinked says that a file was read before, under another name.
var errLinked = errors.New("read before")

// sparse reads the data between the holes of a file.
func (r *reader) sparse(f *os.File, path string) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		_, err := r.stream(f, path, 0) // a pipe has no holes
		return err
	}
	if r.seen(info) {
		return errLinked
	}
	size := info.Size()
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			r.report.HoleBytes += size - off
			return nil
		}
		if err != nil {
			data = off // no holes on this file system
		}
		end, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil || end <= data {
			end = size
		}
		r.report.HoleBytes += data - off
		n, err := r.stream(io.NewSectionReader(f, data, end-data), path, data)
		if err != nil || n < end-data {
			return err // shorter now than it was
		}
		off = end
	}
	return nil
}

// seen reports whether the file was read under another name.
func (r *reader) seen(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 {
		return false
	}
	id := [2]uint64{uint64(st.Dev), st.Ino}
	if r.links[id] {
		return true
	}
	if r.links == nil {
		r.links = make(map[[2]uint64]bool)
	}
	if len(r.links) < maxLinks {
		r.links[id] = true
	}
	return false
}

// stream reads src, whose first byte is at off of its file, to its end.
func (r *reader) stream(src io.Reader, path string, off int64) (int64, error) {
	var total int64
	first, empty := true, 0
	for {
		if err := r.ctx.Err(); err != nil {
			return total, err
		}
		b := r.batch()
		from := len(b.data)
		n, err := src.Read(b.data[from:cap(b.data)])
		if n > 0 {
			b.data = b.data[:from+n]
			b.parts = append(b.parts, part{from, from + n, off + total, first})
			first, empty = false, 0
			total += int64(n)
			r.report.Bytes += int64(n)
			if len(b.data) == cap(b.data) {
				r.flush(path)
			}
		} else if empty++; empty > 100 && err == nil {
			err = io.ErrNoProgress
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, fmt.Errorf("read %s: %w", path, err)
		}
	}
}

// batch returns the batch to read into, which has room.
func (r *reader) batch() *batch {
	if r.cur == nil {
		r.cur = <-r.free
		r.cur.data, r.cur.parts = r.cur.data[:0], r.cur.parts[:0]
	}
	return r.cur
}

// flush hands the batch to all columns.
func (r *reader) flush(path string) {
	if b := r.cur; b != nil && len(b.parts) > 0 {
		r.cur = nil
		b.users.Store(int32(len(r.out)))
		for _, out := range r.out {
			out <- b
		}
	}
	if r.progress != nil {
		r.progress(r.report.Files, r.report.Bytes, path)
	}
}

// walk yields the regular files at and below paths.
func (r *reader) walk(paths []string) iter.Seq2[Source, error] {
	return func(yield func(Source, error) bool) {
		for _, root := range paths {
			real, err := filepath.EvalSymlinks(root) // of the root alone
			if err != nil {
				if !yield(Source{}, err) {
					return
				}
				continue
			}
			err = filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
				if ctxErr := r.ctx.Err(); ctxErr != nil {
					return ctxErr
				}
				ok := true
				switch {
				case err != nil:
					ok = yield(Source{}, err)
				case d.Type().IsRegular():
					ok = yield(Source{path, func() (io.ReadCloser, error) { return openRegular(path) }}, nil)
				case path == real && !d.IsDir():
					ok = yield(Source{}, fmt.Errorf("%s is neither a file nor a directory", path))
				}
				if !ok {
					return fs.SkipAll
				}
				return nil
			})
			if err != nil {
				return // ctx has ended
			}
		}
	}
}

// openRegular opens a file that was regular a moment ago, and neither waits for
// a pipe nor follows a link that took its place.
func openRegular(path string) (io.ReadCloser, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		if err == nil {
			err = fmt.Errorf("%s is no longer a regular file", path)
		}
		return nil, err
	}
	return f, nil
}
