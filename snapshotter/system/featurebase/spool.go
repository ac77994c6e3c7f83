package featurebase

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// errSpace marks what no other attempt will mend: scratch space cannot be written.
var errSpace = errors.New("scratch space (--scratch names a directory with more)")

// errStored marks what no other attempt will mend: the snapshot cannot be read.
var errStored = errors.New("the snapshot cannot be read")

// spool keeps what was captured, in one file for each worker, behind each other: a
// keyed index alone is 256 small files.
type spool struct {
	files []*os.File
	ends  []int64
}

func newSpool(dir string, workers int) (*spool, error) {
	s := &spool{}
	for i := range workers {
		f, err := os.OpenFile(filepath.Join(dir, "spool-"+strconv.Itoa(i)), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.files, s.ends = append(s.files, f), append(s.ends, 0)
	}
	return s, nil
}

// take reads r to its end into a worker's file, and asks whether that was whole. If
// not, its place is taken by the next.
func (s *spool) take(worker int, r io.Reader, check func(f io.ReaderAt, size int64) error) (*io.SectionReader, error) {
	at := s.ends[worker]
	f := s.files[worker]
	if err := f.Truncate(at); err != nil {
		return nil, fmt.Errorf("%w: %w", errSpace, err)
	}
	w := &spoolWriter{f: f, at: at}
	n, err := io.Copy(w, r)
	if w.err != nil {
		return nil, fmt.Errorf("%w: %w", errSpace, w.err)
	}
	if err != nil {
		return nil, err
	}
	part := io.NewSectionReader(f, at, n)
	if err := check(part, n); err != nil {
		return nil, err
	}
	s.ends[worker] = at + n
	return part, nil
}

type spoolWriter struct {
	f   *os.File
	at  int64
	err error
}

func (w *spoolWriter) Write(p []byte) (int, error) {
	n, err := w.f.WriteAt(p, w.at)
	w.at += int64(n)
	w.err = err
	return n, err
}

// Close gives the space back once the directory is removed.
func (s *spool) Close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	s.files = nil
	return errors.Join(errs...)
}

// each does f for all of a list, by some workers. The first error ends it.
func each[T any](ctx context.Context, workers int, list []T, f func(ctx context.Context, worker int, x T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan T)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for x := range work {
				if err := f(ctx, w, x); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, x := range list {
		if ctx.Err() != nil {
			break
		}
		select {
		case work <- x:
		case <-ctx.Done():
		}
	}
	close(work)
	group.Wait()
	return context.Cause(ctx)
}

// stored reads a stored file as a stream, and remembers what could not be read.
type stored struct {
	ctx    context.Context
	n      tree.Node
	off    int64
	failed atomic.Pointer[error] // who sends it may still read when the answer is there
}

// Read implements io.Reader.
func (r *stored) Read(p []byte) (int, error) {
	n, err := storedAt{r.ctx, r.n}.ReadAt(p, r.off)
	r.off += int64(n)
	if n > 0 {
		return n, nil // an error comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	if err != io.EOF {
		r.failed.Store(&err)
	}
	return 0, err
}

// storedAt is a stored file as an io.ReaderAt.
type storedAt struct {
	ctx context.Context
	n   tree.Node
}

func (r storedAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.n.ReadAt(r.ctx, p, off)
	if err == io.EOF && off+int64(n) < r.n.Attr().Size {
		err = fmt.Errorf("it ends at %d of %d bytes: %w", off+int64(n), r.n.Attr().Size, system.ErrIncomplete)
	}
	return n, err
}

// onDisk is a file of a directory, opened for each read: a backup may have more files
// than a process may have open.
type onDisk string

func (f onDisk) ReadAt(p []byte, off int64) (int, error) {
	h, err := os.Open(string(f))
	if err != nil {
		return 0, err
	}
	defer h.Close()
	return h.ReadAt(p, off)
}
