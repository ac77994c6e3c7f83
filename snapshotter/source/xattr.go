package source

import (
	"bytes"
	"context"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// maxXattr bounds an attribute's value and a list of names. Linux stops at
// 64 KiB; some network file systems go beyond.
const maxXattr = 16 << 20

// Xattrs implements tree.Node. All attributes that the kernel lists are
// returned, ACLs and capabilities included; a file system without any has
// none. An attribute removed between listing and reading is left out.
func (e *entry) Xattrs(ctx context.Context) ([]tree.Xattr, error) {
	return e.xattrs(ctx, -1)
}

// Xattrs implements tree.Node. Without /proc, the file is opened for it.
func (f *file) Xattrs(ctx context.Context) ([]tree.Xattr, error) {
	if hasProc() {
		return f.xattrs(ctx, -1)
	}
	o, err := f.open(ctx)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return f.xattrs(ctx, int(o.fd.Load()))
}

// Xattrs implements tree.Node.
func (d *directory) Xattrs(ctx context.Context) ([]tree.Xattr, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := d.acquire()
	if err != nil {
		return nil, err
	}
	defer d.release()
	x := xattrReader{fd: fd}
	if !d.listable() { // O_PATH descriptors have no attributes
		x = xattrReader{fd: -1, path: procPath(fd, ".")}
	}
	return x.all(d.path)
}

// xattrs reads by descriptor, or if fd is negative by name: no system call
// older than Linux 6.13 reads a symlink's attributes relative to a directory,
// but /proc/self/fd leads to the directory without following anything else.
func (e *entry) xattrs(ctx context.Context, fd int) ([]tree.Xattr, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	x := xattrReader{fd: fd}
	if fd < 0 {
		at, err := e.parent.acquire()
		if err != nil {
			return nil, err
		}
		defer e.parent.release()
		x.path = procPath(at, e.attr.Name)
	}
	return x.all(e.path)
}

func procPath(fd int, name string) string { return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name }

// hasProc reports whether /proc is mounted. A minimal chroot may lack it.
var hasProc = sync.OnceValue(func() bool {
	var st unix.Stat_t
	return unix.Stat("/proc/self/fd", &st) == nil
})

// xattrBuffers hold a list of names and a value, both of common length.
var xattrBuffers = sync.Pool{New: func() any { return new([2][1024]byte) }}

// xattrReader reads the attributes of an open file, or of a path whose last
// element it does not follow.
type xattrReader struct {
	fd   int // negative: path
	path string
}

func (x xattrReader) list(p []byte) (int, error) {
	if x.fd >= 0 {
		return unix.Flistxattr(x.fd, p)
	}
	return unix.Llistxattr(x.path, p)
}

func (x xattrReader) get(name string, p []byte) (int, error) {
	if x.fd >= 0 {
		return unix.Fgetxattr(x.fd, name, p)
	}
	return unix.Lgetxattr(x.path, name, p)
}

// all reads everything; path is for messages.
func (x xattrReader) all(path func() string) ([]tree.Xattr, error) {
	buf := xattrBuffers.Get().(*[2][1024]byte)
	defer xattrBuffers.Put(buf)
	names, err := grow(buf[0][:], x.list)
	switch {
	case unsupported(err):
		return nil, nil
	case err != nil:
		return nil, &fs.PathError{Op: "listxattr", Path: path(), Err: err}
	case len(names) == 0:
		return nil, nil
	}
	list := make([]tree.Xattr, 0, bytes.Count(names, []byte{0}))
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		v, err := grow(buf[1][:], func(p []byte) (int, error) { return x.get(name, p) })
		switch {
		case err == unix.ENODATA || unsupported(err):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "getxattr " + name, Path: path(), Err: err}
		}
		list = append(list, tree.Xattr{Name: name, Value: bytes.Clone(v)})
	}
	slices.SortFunc(list, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// grow calls read with buf, and with larger buffers while it says ERANGE. The
// result may share buf.
func grow(buf []byte, read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil:
			return buf[:n], nil
		case err != unix.ERANGE:
			return nil, err
		case len(buf) >= maxXattr:
			return nil, unix.E2BIG
		}
		buf = make([]byte, 8*len(buf))
	}
}
