package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// entry is a node that is neither file nor directory, and what these two have
// in common with it.
type entry struct {
	attr   tree.Attr
	parent *directory // nil for a root that is a directory
}

// file is a regular file. It implements tree.Opener and tree.Extenter.
type file struct{ entry }

// directory is a directory, and the way to its descriptor.
type directory struct {
	entry
	pool       *handles
	rootPath   string     // how to open it, without a parent
	searchOnly bool       // not of the tree: the directory a root lies in
	listing    sync.Mutex // held while reading names: they share a position
	h          handle     // guarded by pool.mu
}

// Open returns the node of what path names: a directory, a file, or anything
// else. A symlink is that symlink; with a slash at the end, the directory it
// points to. The node's Name is the last element of the cleaned absolute path,
// empty for the root directory. A relative path is taken from where the
// process stands now, also if it moves later.
//
// The node needs no closing; it holds no descriptor while nobody iterates over
// a directory or has a file open.
func Open(path string) (tree.Node, error) {
	if path == "" {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	// The kernel gets the path as it was written: "link/.." is not ".".
	raw := path
	if !filepath.IsAbs(path) {
		wd, err := os.Getwd()
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		raw = wd + "/" + path
	}
	var st unix.Stat_t
	if err := fstatat(unix.AT_FDCWD, raw, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: raw, Err: err}
	}
	name := filepath.Base(abs)
	if name == "/" {
		name = ""
	}
	d := &directory{pool: new(handles), rootPath: raw, h: handle{fd: -1}}
	d.pool.root = d
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		setAttr(&d.attr, name, &st)
		// From now on the path must lead to this very directory.
		d.h.known, d.h.dev, d.h.ino = true, d.attr.Dev, d.attr.Ino
		return d, nil
	}
	d.searchOnly = true
	d.rootPath = raw[:strings.LastIndexByte(raw, '/')+1]
	fd, err := d.acquire()
	if err != nil {
		return nil, err
	}
	defer d.release()
	n, err := d.child(fd, name)
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: raw, Err: err}
	}
	return n, nil
}

// Attr implements tree.Node.
func (e *entry) Attr() *tree.Attr { return &e.attr }

// Lookup implements tree.Node: what is no directory has no children.
func (e *entry) Lookup(context.Context, string) (tree.Node, error) {
	return nil, &fs.PathError{Op: "lookup", Path: e.path(), Err: unix.ENOTDIR}
}

// Entries implements tree.Node: what is no directory has no children.
func (e *entry) Entries(context.Context, int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		yield(nil, &fs.PathError{Op: "readdir", Path: e.path(), Err: unix.ENOTDIR})
	}
}

// ReadAt implements tree.Node: only regular files are read.
func (e *entry) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: e.path(), Err: unix.EINVAL}
}

func (e *entry) path() string {
	if e.parent == nil {
		return "/"
	}
	return strings.TrimRight(e.parent.path(), "/") + "/" + e.attr.Name
}

// Lookup implements tree.Node. It sees the directory as it is now.
func (d *directory) Lookup(ctx context.Context, name string) (tree.Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	full := func() string { return strings.TrimRight(d.path(), "/") + "/" + name }
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, &fs.PathError{Op: "lookup", Path: full(), Err: fs.ErrNotExist}
	}
	fd, err := d.acquire()
	if err != nil {
		return nil, err
	}
	defer d.release()
	n, err := d.child(fd, name)
	if err != nil {
		return nil, &fs.PathError{Op: "lookup", Path: full(), Err: err}
	}
	return n, nil
}

// Entries implements tree.Node. The names are those of the moment when the
// iteration starts, the attributes those of the moment when a child is
// yielded; a child that is gone by then is left out. Every call lists the
// whole directory, so a large from is not cheaper than zero.
func (d *directory) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		if _, err := d.pool.root.acquire(); err != nil {
			yield(nil, err)
			return
		}
		defer d.pool.root.release()
		list, err := d.names(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		for i := max(from, 0); i < int64(len(list.refs)); i++ {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			name := string(list.bytes(list.refs[i]))
			fd, err := d.acquire()
			if err != nil {
				yield(nil, err)
				return
			}
			n, err := d.child(fd, name)
			d.release()
			switch {
			case err == unix.ENOENT:
				continue
			case err != nil:
				n, err = nil, &fs.PathError{Op: "stat", Path: name, Err: err}
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

// ReadAt implements tree.Node.
func (d *directory) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.path(), Err: unix.EISDIR}
}

// child makes the node of a name in the directory whose descriptor is fd.
// Errors are bare: an errno, or one that says what is wrong.
func (d *directory) child(fd int, name string) (tree.Node, error) {
	var st unix.Stat_t
	// What was a symlink may be something else when its target is read.
	for range 10 {
		if err := fstatat(fd, name, &st); err != nil {
			return nil, err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f := &file{entry{parent: d}}
			setAttr(&f.attr, name, &st)
			return f, nil
		case unix.S_IFDIR:
			c := &directory{entry: entry{parent: d}, pool: d.pool, h: handle{fd: -1}}
			setAttr(&c.attr, name, &st)
			return c, nil
		}
		e := &entry{parent: d}
		if err := setAttr(&e.attr, name, &st); err != nil {
			return nil, err
		}
		if e.attr.Kind != tree.Symlink {
			return e, nil
		}
		target, err := readlinkat(fd, name)
		switch {
		case err == unix.EINVAL:
			continue
		case err != nil:
			return nil, err
		}
		e.attr.Target, e.attr.Size = target, int64(len(target))
		return e, nil
	}
	return nil, errors.New("keeps changing between symlink and file")
}

// setAttr fills a from what the kernel says. A symlink's target is left out.
func setAttr(a *tree.Attr, name string, st *unix.Stat_t) error {
	*a = tree.Attr{
		Name:  name,
		Mode:  st.Mode & 07777,
		UID:   st.Uid,
		GID:   st.Gid,
		Mtime: tree.Time{Sec: int64(st.Mtim.Sec), Nsec: uint32(st.Mtim.Nsec)},
		Ctime: tree.Time{Sec: int64(st.Ctim.Sec), Nsec: uint32(st.Ctim.Nsec)},
		Nlink: uint32(st.Nlink),
		Dev:   uint64(st.Dev),
		Ino:   st.Ino,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		a.Kind, a.Size, a.Allocated = tree.File, st.Size, st.Blocks*512
	case unix.S_IFDIR:
		a.Kind = tree.Dir
	case unix.S_IFLNK:
		a.Kind = tree.Symlink
	case unix.S_IFIFO:
		a.Kind = tree.FIFO
	case unix.S_IFSOCK:
		a.Kind = tree.Socket
	case unix.S_IFCHR:
		a.Kind, a.Rdev = tree.CharDevice, uint64(st.Rdev)
	case unix.S_IFBLK:
		a.Kind, a.Rdev = tree.BlockDevice, uint64(st.Rdev)
	default:
		return fmt.Errorf("file type %#o is unknown", st.Mode&unix.S_IFMT)
	}
	return nil
}

func fstatat(at int, name string, st *unix.Stat_t) error {
	for {
		err := unix.Fstatat(at, name, st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
		if err != unix.EINTR {
			return err
		}
	}
}

// maxTarget bounds what a file system may claim as a link's target. Linux
// itself stops at 4095 bytes.
const maxTarget = 1 << 20

// readlinkat reads a target of any length: st_size is not to be trusted, /proc
// says 0.
func readlinkat(at int, name string) (string, error) {
	var small [256]byte
	buf := small[:]
	for {
		n, err := unix.Readlinkat(at, name, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return "", err
		case n < len(buf):
			return string(buf[:n]), nil
		case len(buf) >= maxTarget:
			return "", unix.ENAMETOOLONG
		}
		buf = make([]byte, 4*len(buf))
	}
}
