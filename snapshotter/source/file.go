package source

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
)

var (
	_ tree.Node     = (*file)(nil)
	_ tree.Opener   = (*file)(nil)
	_ tree.Extenter = (*file)(nil)
	_ tree.Node     = (*directory)(nil)
	_ tree.Node     = (*entry)(nil)
)

// openFile is an open regular file. Its path is built only for messages.
type openFile struct {
	of *file
	fd atomic.Int64 // -1 once closed
}

// leaseWait is how long Open waits for whoever holds a lease on a file (a file
// server, say). The kernel breaks leases after 45 s by itself.
const leaseWait = 60 * time.Second

// Open implements tree.Opener. If another regular file has taken the name
// meanwhile, that one is opened, and Stat shows it; anything else is ELOOP
// (a symlink) or an error that wraps fs.ErrInvalid.
//
// The OpenFile may be read by many goroutines, but is closed by one that knows
// the others to be done.
func (f *file) Open(ctx context.Context) (tree.OpenFile, error) { return f.open(ctx) }

func (f *file) open(ctx context.Context) (*openFile, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	at, err := f.parent.acquire()
	if err != nil {
		return nil, err
	}
	defer f.parent.release()
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := openQuietly(at, f.attr.Name, flags)
	for wait := time.Millisecond; err == unix.EAGAIN && wait < leaseWait; wait *= 2 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
		fd, err = openQuietly(at, f.attr.Name, flags)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: f.path(), Err: err}
	}
	o := &openFile{of: f}
	o.fd.Store(int64(fd))
	var st unix.Stat_t
	if err = o.stat(&st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = &fs.PathError{Op: "open", Path: f.path(), Err: fs.ErrInvalid}
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// ReadAt implements tree.Node.
func (f *file) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	o, err := f.open(ctx)
	if err != nil {
		return 0, err
	}
	defer o.Close()
	return o.ReadAt(p, off)
}

// Extents implements tree.Extenter with the holes as they are now.
func (f *file) Extents(ctx context.Context, off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		o, err := f.open(ctx)
		if err != nil {
			yield(tree.Extent{}, err)
			return
		}
		defer o.Close()
		o.Extents(off)(yield)
	}
}

// fail names the file in an error.
func (o *openFile) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: o.of.path(), Err: err}
}

// Close implements tree.OpenFile. Closing twice is fs.ErrClosed.
func (o *openFile) Close() error {
	fd := o.fd.Swap(-1)
	if fd < 0 {
		return o.fail("close", fs.ErrClosed)
	}
	if err := unix.Close(int(fd)); err != nil && err != unix.EINTR {
		return o.fail("close", err)
	}
	return nil
}

func (o *openFile) stat(st *unix.Stat_t) error {
	if err := unix.Fstat(int(o.fd.Load()), st); err != nil {
		return o.fail("stat", err)
	}
	return nil
}

// Stat implements tree.OpenFile.
func (o *openFile) Stat() (*tree.Attr, error) {
	var st unix.Stat_t
	if err := o.stat(&st); err != nil {
		return nil, err
	}
	a := new(tree.Attr)
	if err := setAttr(a, o.of.attr.Name, &st); err != nil {
		return nil, o.fail("stat", err)
	}
	return a, nil
}

// ReadAt implements io.ReaderAt.
func (o *openFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, o.fail("read", fs.ErrInvalid)
	}
	n := 0
	for n < len(p) {
		m, err := unix.Pread(int(o.fd.Load()), p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, o.fail("read", err)
		case m == 0:
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// Extents implements tree.OpenFile. It goes by the size at the start; a file
// that shrinks meanwhile ends in a hole, one that grows is not followed. Where
// the file system cannot tell, the rest is one Data extent.
func (o *openFile) Extents(off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		if off < 0 {
			yield(tree.Extent{}, o.fail("seek", fs.ErrInvalid))
			return
		}
		var st unix.Stat_t
		if err := o.stat(&st); err != nil {
			yield(tree.Extent{}, err)
			return
		}
		for size := st.Size; off < size; {
			kind, end, err := o.extentAt(off, size)
			if err != nil {
				yield(tree.Extent{}, o.fail("seek", err))
				return
			}
			x := tree.Extent{Off: off, Len: end - off, Kind: kind, End: tree.EndSource}
			if end == size {
				x.End = tree.EndFile
			}
			if !yield(x, nil) {
				return
			}
			off = end
		}
	}
}

// extentAt tells what is at off, and where that ends: behind off, at size at
// the latest, whatever the file system answers.
func (o *openFile) extentAt(off, size int64) (tree.ExtentKind, int64, error) {
	fd := int(o.fd.Load())
	data, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO: // no data from here on, or the file shrank
		return tree.Hole, size, nil
	case unsupported(err) || err == unix.EINVAL:
		return tree.Data, size, nil
	case err != nil:
		return 0, 0, err
	case data > off:
		return tree.Hole, min(data, size), nil
	}
	hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
	switch {
	case err != nil && err != unix.ENXIO:
		return 0, 0, err
	case err != nil || hole <= off:
		return tree.Data, size, nil
	}
	return tree.Data, min(hole, size), nil
}

// unsupported reports whether err says that a file system lacks something.
func unsupported(err error) bool {
	return err == unix.ENOTSUP || err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.ENOTTY
}
