package source

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// FS returns the root of fsys as a Node; its Name is empty. Attributes are
// what an fs.FileInfo knows: kind, permission bits, mtime, size, and a link's
// target if fsys is an fs.ReadLinkFS. Owner, device and inode are 0, the link
// count is 1. Files are tree.Openers; their contents are one Data extent.
// Paths in errors start with a slash, the root of fsys. A root that cannot be
// stat'ed is a directory with the mode 0, whose Entries give the error.
func FS(fsys fs.FS) tree.Node {
	if n, err := newFSNode(fsys, "."); err == nil {
		return n
	}
	return &fsNode{fsys: fsys, name: ".", attr: tree.Attr{Kind: tree.Dir, Nlink: 1}}
}

// fsNode is a file or directory of an io/fs file system.
type fsNode struct {
	fsys fs.FS
	name string // as fs.ValidPath wants it
	attr tree.Attr
}

// fsFile is a regular one.
type fsFile struct{ fsNode }

func newFSNode(fsys fs.FS, name string) (tree.Node, error) {
	info, err := fs.Lstat(fsys, name)
	if err != nil {
		return nil, err
	}
	n := fsNode{fsys: fsys, name: name, attr: fsAttr(info)}
	if name == "." {
		n.attr.Name = ""
	} else {
		n.attr.Name = path.Base(name)
	}
	switch n.attr.Kind {
	case 0:
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrInvalid}
	case tree.Symlink:
		if n.attr.Target, err = fs.ReadLink(fsys, name); err != nil {
			return nil, err
		}
		n.attr.Size = int64(len(n.attr.Target))
	case tree.File:
		return &fsFile{n}, nil
	}
	return &n, nil
}

// fsAttr maps what io/fs knows. An unknown kind is left 0.
func fsAttr(info fs.FileInfo) tree.Attr {
	mode := info.Mode()
	a := tree.Attr{Mode: uint32(mode.Perm()), Mtime: tree.TimeOf(info.ModTime()), Nlink: 1}
	for bit, unixBit := range map[fs.FileMode]uint32{
		fs.ModeSetuid: unix.S_ISUID, fs.ModeSetgid: unix.S_ISGID, fs.ModeSticky: unix.S_ISVTX,
	} {
		if mode&bit != 0 {
			a.Mode |= unixBit
		}
	}
	switch mode.Type() {
	case 0:
		a.Kind, a.Size, a.Allocated = tree.File, info.Size(), info.Size()
	case fs.ModeDir:
		a.Kind = tree.Dir
	case fs.ModeSymlink:
		a.Kind = tree.Symlink
	case fs.ModeNamedPipe:
		a.Kind = tree.FIFO
	case fs.ModeSocket:
		a.Kind = tree.Socket
	case fs.ModeDevice | fs.ModeCharDevice:
		a.Kind = tree.CharDevice
	case fs.ModeDevice:
		a.Kind = tree.BlockDevice
	}
	return a
}

// fail gives err the path of the node, or of a child by its bare name.
func (n *fsNode) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: path.Join("/", n.name), Err: bare(err)}
}

func bare(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

func (n *fsNode) Attr() *tree.Attr { return &n.attr }

// Xattrs implements tree.Node: io/fs knows none.
func (n *fsNode) Xattrs(ctx context.Context) ([]tree.Xattr, error) { return nil, ctx.Err() }

func (n *fsNode) Lookup(ctx context.Context, name string) (tree.Node, error) {
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case n.attr.Kind != tree.Dir:
		return nil, n.fail("lookup", unix.ENOTDIR)
	case !fs.ValidPath(name) || name == "." || strings.Contains(name, "/"):
		return nil, &fs.PathError{Op: "lookup", Path: path.Join("/", n.name) + "/" + name, Err: fs.ErrNotExist}
	}
	child, err := newFSNode(n.fsys, path.Join(n.name, name))
	if err != nil {
		return nil, &fs.PathError{Op: "lookup", Path: path.Join("/", n.name, name), Err: bare(err)}
	}
	return child, nil
}

func (n *fsNode) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		if n.attr.Kind != tree.Dir {
			yield(nil, n.fail("readdir", unix.ENOTDIR))
			return
		}
		list, err := fs.ReadDir(n.fsys, n.name)
		if err != nil {
			yield(nil, n.fail("readdir", err))
			return
		}
		slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
		for _, e := range list[min(max(from, 0), int64(len(list))):] {
			if ctx.Err() != nil {
				yield(nil, ctx.Err())
				return
			}
			child, err := newFSNode(n.fsys, path.Join(n.name, e.Name()))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				child, err = nil, &fs.PathError{Op: "stat", Path: e.Name(), Err: bare(err)}
			}
			if !yield(child, err) {
				return
			}
		}
	}
}

func (n *fsNode) ReadAt(context.Context, []byte, int64) (int, error) {
	if n.attr.Kind == tree.Dir {
		return 0, n.fail("read", unix.EISDIR)
	}
	return 0, n.fail("read", unix.EINVAL)
}

// ReadAt implements tree.Node.
func (f *fsFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	o, err := f.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer o.Close()
	return o.ReadAt(p, off)
}

// Extents implements tree.Extenter.
func (f *fsFile) Extents(_ context.Context, off int64) iter.Seq2[tree.Extent, error] {
	return oneExtent(off, f.attr.Size)
}

// Open implements tree.Opener.
func (f *fsFile) Open(ctx context.Context) (tree.OpenFile, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o, err := f.fsys.Open(f.name)
	if err != nil {
		return nil, f.fail("open", err)
	}
	return &fsOpen{File: o, of: f}, nil
}

// fsOpen reads an fs.File at any offset, by ReadAt or else by Seek.
type fsOpen struct {
	fs.File
	of *fsFile
	mu sync.Mutex // one position
}

func (o *fsOpen) Stat() (*tree.Attr, error) {
	info, err := o.File.Stat()
	if err != nil {
		return nil, o.of.fail("stat", err)
	}
	a := fsAttr(info)
	a.Name = o.of.attr.Name
	return &a, nil
}

func (o *fsOpen) ReadAt(p []byte, off int64) (int, error) {
	if r, ok := o.File.(io.ReaderAt); ok {
		n, err := r.ReadAt(p, off)
		if err != nil && err != io.EOF {
			err = o.of.fail("read", err)
		}
		return n, err
	}
	s, ok := o.File.(io.ReadSeeker)
	if !ok {
		return 0, o.of.fail("read", errors.ErrUnsupported)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := s.Seek(off, io.SeekStart); err != nil {
		return 0, o.of.fail("seek", err)
	}
	n, err := io.ReadFull(s, p)
	switch err {
	case nil:
		return n, nil
	case io.ErrUnexpectedEOF, io.EOF:
		return n, io.EOF
	}
	return n, o.of.fail("read", err)
}

func (o *fsOpen) Extents(off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		a, err := o.Stat()
		if err != nil {
			yield(tree.Extent{}, err)
			return
		}
		oneExtent(off, a.Size)(yield)
	}
}

func oneExtent(off, size int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		if off >= 0 && off < size {
			yield(tree.Extent{Off: off, Len: size - off, Kind: tree.Data, End: tree.EndFile}, nil)
		}
	}
}
